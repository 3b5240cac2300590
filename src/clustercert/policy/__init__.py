"""The policy: decides which groups and which lifetime a caller's certificate gets."""
