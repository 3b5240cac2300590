"""Encodes a leaf's subject."""

import functools

from cryptography import x509
from cryptography.x509.oid import NameOID

from clustercert.model import Grant, credential_group, credential_number

# RFC 5280 appendix A: ub-common-name and ub-organization-name. Like many verifiers, this counts bytes of UTF-8.
MAX_NAME = 64

# A placeholder for a credential number. All numbers have the same length.
_ANY_NUMBER = credential_number(0)


def subject(grant: Grant, credential_number: str | None = None) -> x509.Name:
    """Build the subject: an O for each group in order, an O for the credential group if there is one, then CN.

    kube-apiserver takes the username from CN and the groups from O.
    """
    if credential_number is None:
        return _name(grant.username, grant.groups)
    return _name(grant.username, (*grant.groups, credential_group(credential_number)))


@functools.lru_cache(maxsize=4096)
def subject_template(username: str, groups: tuple[str, ...], *, numbered: bool) -> tuple[bytes, bytes]:
    """Return the subject's DER before and after the credential number. Without a number, the second part is empty."""
    if not numbered:
        return _name(username, groups).public_bytes(), b""
    whole = _name(username, (*groups, credential_group(_ANY_NUMBER))).public_bytes()
    # The credential group is the last O, so its number ends where the CN begins.
    name = _name(username, ()).public_bytes()
    common_name = name[_header_length(name) :]
    return whole[: -len(common_name) - len(_ANY_NUMBER)], common_name


def _name(username: str, groups: tuple[str, ...]) -> x509.Name:
    organizations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organizations, x509.NameAttribute(NameOID.COMMON_NAME, username)])


def _header_length(der: bytes) -> int:
    return 2 + (der[1] & 0x7F if der[1] & 0x80 else 0)
