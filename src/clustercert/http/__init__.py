"""HTTP: translates requests into calls of use cases, and their results into responses."""
