"""Periodic work that only the leader among the serving processes does."""
