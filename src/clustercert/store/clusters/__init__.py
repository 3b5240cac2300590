"""Queries for clusters, their client CAs, and counts over all clusters."""
