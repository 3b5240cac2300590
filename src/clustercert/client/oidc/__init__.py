"""Login of people at OIDC issuers: authorization code with PKCE, device code, refresh tokens."""
