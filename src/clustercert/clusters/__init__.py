"""Use case: the registry of clusters."""
