"""Kubernetes API servers: API client, set-up, verification, webhooks, and enforcement of revocations."""
