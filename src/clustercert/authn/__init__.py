"""Authenticates requests. `identity` stores users, tokens and access keys."""
