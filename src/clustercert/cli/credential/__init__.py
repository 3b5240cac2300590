"""The exec plugin of kubectl: cached and renewed client certificates."""
