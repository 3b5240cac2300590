"""Authenticates users of an OpenStack Keystone: by their tokens, and by signatures with EC2 credentials."""
