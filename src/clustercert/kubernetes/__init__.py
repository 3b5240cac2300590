"""Kubernetes API servers: API client, manifests, webhooks, and enforcement of revocations."""
