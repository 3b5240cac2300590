"""Credential groups: each certificate has its own group, whose name ends with the certificate's credential number.

kube-apiserver identifies a certificate by the hash of the presented bytes, but a certificate has many valid encodings.
The CA signs the groups, so the groups are the same in every encoding.
"""

import re
from collections.abc import Iterable

from clustercert.model.kubernetes import TOKEN_ID, X509_ID

CREDENTIAL_PREFIX = "clustercert:credential:"
"""The prefix of credential groups. The credential number follows the prefix."""

NUMBER_DIGITS = 40
_TOKEN_ID, _X509_ID = TOKEN_ID.lower(), X509_ID.lower()
_NUMBER = re.compile(rf"[0-9a-f]{{{NUMBER_DIGITS}}}")


def credential_number(serial: int) -> str:
    """Convert a serial of at most 160 bits to a credential number: 40 lower-case hex digits."""
    return f"{serial:0{NUMBER_DIGITS}x}"


def credential_group(number: str) -> str:
    """Return the credential group for a number. The group has 63 bytes; X.520 allows 64 for an organization name."""
    return f"{CREDENTIAL_PREFIX}{number}"


def is_credential_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None


def credential_groups(groups: Iterable[str]) -> list[str]:
    """Return the groups whose names begin with the prefix of credential groups, even if they are malformed."""
    return [group for group in groups if group.startswith(CREDENTIAL_PREFIX)]


def without_credential_group(groups: Iterable[str], number: str) -> tuple[str, ...]:
    """Return a certificate's groups, except the credential group of this credential number."""
    own = credential_group(number)
    return tuple(group for group in groups if group != own)


def bare_name(text: str) -> str:
    """Return the hex digits of a fingerprint, credential number or serial, or of a credential id of an audit log.

    A credential id is `X509SHA256=` and a fingerprint, or `JTI=` and the UUID of a token, whose digits are the serial.
    Removes colons, and returns other text in lower case.
    """
    name = text.lower()
    if name.startswith(_TOKEN_ID):
        return name.removeprefix(_TOKEN_ID).replace("-", "")
    return name.removeprefix(_X509_ID).replace(":", "")
