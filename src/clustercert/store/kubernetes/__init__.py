"""Queries for what API servers report, and for the enforcement of revocations."""
