"""Authenticates requests. The package `identity` stores users, tokens and access keys."""
