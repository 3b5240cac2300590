"""Generates ids in the formats that real clients check."""

import hashlib
import os
import uuid


def new_id() -> str:
    """A random id of 32 lower-case hex digits, for requests and for all stored objects except clusters."""
    return os.urandom(16).hex()


def id_of(text: str) -> str:
    """Derive an id in the form of `new_id` from a string: the first half of the SHA-256 of its UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def new_cluster_id() -> str:
    """A random UUID in 8-4-4-4-12 form."""
    return str(uuid.uuid4())
