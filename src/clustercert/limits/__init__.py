"""Limits on issued certificates and other credentials, and on failed authentications."""
