"""Benchmarks of the running service and its peers. Nothing here is part of the service."""
