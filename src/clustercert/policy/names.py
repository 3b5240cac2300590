"""Rules for printable strings, and for user and group names in certificates."""

import functools
import unicodedata

from clustercert.model import CREDENTIAL_PREFIX
from clustercert.pki.subject import MAX_NAME

# kube-apiserver treats names with this prefix specially: it authorizes every request from a member of system:masters.
SYSTEM_PREFIX = "system:"

# Unicode Standard Annex 9: marks, embeddings, overrides and isolates. They change the order of displayed text.
_BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@functools.lru_cache(maxsize=4096)
def is_plain_text(text: str) -> bool:
    """Whether text is free of control characters, line separators, bidirectional controls and lone surrogates."""
    return not any(
        character in _BIDIRECTIONAL or unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}
        for character in text
    )


def invisible_problem(text: str) -> str | None:
    """Return why a name could be mistaken for another one, or None if it could not."""
    # `isprintable` excludes control, format (including bidirectional), surrogate and private-use characters.
    if not text.isprintable() or text != text.strip():
        return "has invisible characters, or a space at its start or end"
    if not unicodedata.is_normalized("NFC", text):
        return "is not in Unicode NFC"
    return None


@functools.lru_cache(maxsize=4096)
def name_problem(name: str, allowed_system_names: frozenset[str]) -> str | None:
    """Return a sentence that says why a certificate can't contain this user or group name, or None if it can."""
    if not is_plain_text(name):
        return "a user or group name has a control, bidirectional or unpaired surrogate character."
    if not 1 <= len(name.encode()) <= MAX_NAME:
        return f"a user or group name must have 1 to {MAX_NAME} bytes in UTF-8; this one has {len(name.encode())}."
    if name.casefold().startswith(CREDENTIAL_PREFIX):
        return (
            f"{name} begins with {CREDENTIAL_PREFIX}, which is reserved for credential groups of clustercert."
        )
    if name.startswith(SYSTEM_PREFIX) and name not in allowed_system_names:
        return f"{name} is reserved by Kubernetes and not allowed by the settings (policy.allow_system)."
    return None
