"""Limits on issued certificates and on failed authentications."""
