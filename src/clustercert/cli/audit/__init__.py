"""Commands that read, verify and prune the audit log."""
