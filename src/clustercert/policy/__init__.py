"""The policy: decides on the groups and the lifetime of a caller's certificate."""
