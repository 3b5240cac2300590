"""Measurements of the running service beside its peers; nothing here is part of the service."""
