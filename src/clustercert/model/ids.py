"""Generates and checks ids, in the formats that real clients expect."""

import hashlib
import os
import re
import uuid

_USER_ID = re.compile(r"[0-9a-f]{32}(?:[0-9a-f]{32})?")
_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_LONG_ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def new_id() -> str:
    """Return a random id of 32 lower-case hex digits, for requests and for all stored objects except clusters."""
    return os.urandom(16).hex()


def id_of(text: str) -> str:
    """Derive an id in the format of `new_id` from a string: the first half of the SHA-256 of the UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_user_id(text: str) -> bool:
    """Whether a string can be the id of a user or group: 32 or 64 lower-case hex digits.

    Ids of users and groups that Keystone reads from LDAP have 64 digits.
    """
    return _USER_ID.fullmatch(text) is not None


def is_id(text: str) -> bool:
    """Whether a string has the format of `new_id`: 32 lower-case hex digits."""
    return _ID.fullmatch(text) is not None


def is_long_id(text: str) -> bool:
    """Whether a string is 32 or 64 lower-case hex digits, or a UUID, like all ids that this service generates."""
    return _LONG_ID.fullmatch(text) is not None


def new_cluster_id() -> str:
    """Return a random UUID in the format 8-4-4-4-12."""
    return str(uuid.uuid4())
