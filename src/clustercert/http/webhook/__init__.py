"""Endpoints for API servers: authorization and audit webhooks."""
