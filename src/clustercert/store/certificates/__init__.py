"""Queries for issued certificates, their revocations, and who has access."""
