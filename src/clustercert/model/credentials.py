"""Credential groups: each certificate is in a group whose name contains its credential number.

kube-apiserver identifies a certificate by the hash of the presented bytes, but a certificate has many valid encodings.
The CA signs the groups, so they are the same in every encoding.
"""

import re
from collections.abc import Iterable

CREDENTIAL_PREFIX = "clustercert:credential:"
"""The prefix of credential groups; the credential number follows."""

NUMBER_DIGITS = 40
_NUMBER = re.compile(rf"[0-9a-f]{{{NUMBER_DIGITS}}}")


def credential_number(serial: int) -> str:
    """Convert a serial of at most 160 bits to a credential number: 40 lower-case hex digits."""
    return f"{serial:0{NUMBER_DIGITS}x}"


def credential_group(number: str) -> str:
    """The group for a credential number. It has 63 bytes; X.520 allows 64 for an organization name."""
    return f"{CREDENTIAL_PREFIX}{number}"


def is_credential_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None


def credential_groups(groups: Iterable[str]) -> list[str]:
    """Return the groups with the prefix of credential groups, even if malformed."""
    return [group for group in groups if group.startswith(CREDENTIAL_PREFIX)]


def number_of(record_number: str | None, serial: str, groups: Iterable[str]) -> str | None:
    """The credential number of a certificate in the ledger, or None.

    Versions before schema 0005 recorded no number. In clusters with a binding for each certificate, they used the
    serial as the credential number.
    """
    if record_number is not None:
        return record_number
    return serial if is_credential_number(serial) and credential_group(serial) in groups else None


def without_credential_group(groups: Iterable[str], number: str | None) -> tuple[str, ...]:
    """A certificate's groups without its credential group. `number` comes from `number_of`."""
    own = None if number is None else credential_group(number)
    return tuple(group for group in groups if group != own)
