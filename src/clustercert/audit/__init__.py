"""Use case: every event has its place in a log that shows tampering to whoever kept an earlier head of it."""
