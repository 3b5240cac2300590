"""CCE's API: clusters and `clustercert`."""
