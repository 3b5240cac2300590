"""Periodic tasks that only one of the serving processes, the leader, runs."""
