"""Generates ids in the formats that real clients check."""

import os
import uuid


def new_id() -> str:
    """A random id of 32 lower-case hex digits, for requests and for all stored objects except clusters."""
    return os.urandom(16).hex()


def new_cluster_id() -> str:
    """A random UUID in 8-4-4-4-12 form."""
    return str(uuid.uuid4())
