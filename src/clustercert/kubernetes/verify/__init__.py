"""Proves with temporary certificates that issuing, permissions and revocation work in a cluster."""
