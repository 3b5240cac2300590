"""Queries for the audit log and its events."""
