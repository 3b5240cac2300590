"""Authenticates JSON Web Tokens (JWT) from OpenID Connect issuers: identity providers, CI systems, clusters."""
