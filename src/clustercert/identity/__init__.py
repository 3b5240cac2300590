"""Use case: the built-in identity service, and the rights of users whom OIDC issuers and Keystone authenticate."""
