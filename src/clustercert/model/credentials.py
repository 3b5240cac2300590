"""The group that names a certificate: it is signed, so it is the same in every encoding of the certificate.

kube-apiserver hashes the bytes that a client presents, and a certificate has many valid encodings. Its groups are part
of what the CA signed.
"""

import re
from collections.abc import Iterable

CREDENTIAL_PREFIX = "clustercert:credential:"
"""How the credential group of a certificate begins; its credential number follows."""

NUMBER_DIGITS = 40
_NUMBER = re.compile(rf"[0-9a-f]{{{NUMBER_DIGITS}}}")


def credential_number(serial: int) -> str:
    """The credential number of a serial of at most 160 bits: 40 lower-case hex digits."""
    return f"{serial:0{NUMBER_DIGITS}x}"


def credential_group(number: str) -> str:
    """The group of a credential number: 63 bytes, of the 64 that X.520 allows an organization name."""
    return f"{CREDENTIAL_PREFIX}{number}"


def is_credential_number(text: str) -> bool:
    """Whether the text is a well-formed credential number."""
    return _NUMBER.fullmatch(text) is not None


def credential_groups(groups: Iterable[str]) -> list[str]:
    """Those of the groups that begin with the prefix, well-formed or not."""
    return [group for group in groups if group.startswith(CREDENTIAL_PREFIX)]


def number_of(record_number: str | None, serial: str, groups: Iterable[str]) -> str | None:
    """The credential number that a certificate of the ledger carries; None where it carries none.

    Programs before schema 0005 recorded no number. In clusters with a binding for each certificate they named the
    credential group after the serial.
    """
    if record_number is not None:
        return record_number
    return serial if is_credential_number(serial) and credential_group(serial) in groups else None


def without_credential_group(groups: Iterable[str], number: str | None) -> tuple[str, ...]:
    """A certificate's groups without its credential group; `number` is what `number_of` gives."""
    own = None if number is None else credential_group(number)
    return tuple(group for group in groups if group != own)
