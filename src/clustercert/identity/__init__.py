"""Use case: the built-in identity service, and the rights of users authenticated by OIDC issuers and Keystone."""
