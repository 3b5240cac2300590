"""Use cases of access requests: ask, decide, extend, end, and issue certificates with the requested access."""
