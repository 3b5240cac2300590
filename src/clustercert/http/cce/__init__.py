"""CCE's API: the routes for clusters, and `clustercert`, which issues certificates."""
