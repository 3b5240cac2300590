"""HTTP: translate a request into a use case's terms, and its answer back, and stop."""
