"""The shapes of revoking, for validation of what comes in and documentation of both ways.

Source: CCE API reference, "Revoking Cluster Certificates" of a user, for clustercertrevoke; the others are ours.
"""

import base64
import binascii
from datetime import datetime
from typing import get_args

from pydantic import BaseModel, ConfigDict, Field

from clustercert.certificate import MAX_NAME
from clustercert.errors import InvalidRequest
from clustercert.model import JsonObject, Revocation, RevocationReason
from clustercert.revocation import MAX_NOTE, Grounds, Page

# An RSA signature by a key of 4096 bits has 512 bytes.
MAX_SIGNATURE = 1024


class ClusterCertRevokeRequest(BaseModel):
    """The body of POST clustercertrevoke: exactly one of the two. null counts as absent; unknown fields are ignored."""

    model_config = ConfigDict(
        strict=True, extra="ignore", hide_input_in_errors=True, title="ClusterCertRevokeRequest"
    )

    userId: str | None = Field(  # noqa: N815 - CCE's name
        default=None,
        description="Whose certificates: the CN in them. The user need not exist any more.",
        json_schema_extra={"minLength": 1, "maxLength": MAX_NAME},
    )
    agencyId: str | None = Field(  # noqa: N815 - CCE's name
        default=None,
        description="The same of an agency.",
        json_schema_extra={"minLength": 1, "maxLength": MAX_NAME},
    )

    def applicant(self) -> str:
        """Whose certificates. Raises InvalidRequest unless exactly one is named."""
        if self.userId is not None and self.agencyId is not None:
            raise InvalidRequest("userId, agencyId: send one of them, not both.")
        if self.userId is not None:
            return self.userId
        if self.agencyId is not None:
            return self.agencyId
        raise InvalidRequest("userId, agencyId: say whose certificates with one of them.")


class RevokeRequest(BaseModel):
    """The body of whatever else revokes; may be left out."""

    model_config = ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True, title="RevokeRequest")

    reason: RevocationReason | None = Field(
        default=None,
        description="As in RFC 5280. What is revoked for keyCompromise can't be undone.",
    )
    note: str | None = Field(
        default=None,
        description="Kept in the audit; no control or bidirectional characters.",
        json_schema_extra={"maxLength": MAX_NOTE},
    )

    def grounds(self) -> Grounds:
        return Grounds(self.reason or "unspecified", self.note)


class RevokeWithKeyRequest(RevokeRequest):
    """The body of revoke-with-key."""

    model_config = ConfigDict(title="RevokeWithKeyRequest")

    signature: str = Field(
        description="Base64 of the signature over `clustercert revoke v1`, the service's name and the fingerprint,"
        " each followed by a line feed, by the certificate's key: ECDSA or RSA PKCS#1 v1.5 with SHA-256, or Ed25519.",
        json_schema_extra={"minLength": 1, "maxLength": MAX_SIGNATURE},
    )

    def signature_bytes(self) -> bytes:
        """Raises InvalidRequest where it is no base64."""
        try:
            if len(self.signature) > MAX_SIGNATURE:
                raise ValueError("too long")
            return base64.b64decode(self.signature, validate=True)
        except (ValueError, binascii.Error) as error:
            raise InvalidRequest(f"signature: send base64 of at most {MAX_SIGNATURE} characters.") from error


class _Answer(BaseModel):
    """Documentation of an answer; `revocation` writes the bytes."""


class RevocationBody(_Answer):
    """One revocation. Times as in RFC 3339; what it isn't about is null."""

    id: int
    fingerprint: str | None = Field(description="Of the one certificate that is revoked.")
    user_id: str | None = Field(description="Whose; null for everybody's.")
    cluster_id: str | None = Field(description="Where; null for all clusters.")
    reason: str = Field(json_schema_extra={"enum": list(get_args(RevocationReason))})
    note: str | None
    at: str
    by: str = Field(description="The user's id, `holder`, or `cli:` and an account of the operating system.")
    proved: bool = Field(description="Whether the certificate's key itself asked.")
    undone_at: str | None
    undone_by: str | None
    can_be_undone: bool = Field(description="By an operator, now.")


class RevocationListBody(_Answer):
    """Some revocations, the newest first."""

    revocations: list[RevocationBody]
    next: str | None = Field(description="The cursor of the next page; null at the end.")


def revocation_body(revocation: Revocation, *, can_be_undone: bool) -> JsonObject:
    return {
        "id": revocation.id,
        "fingerprint": revocation.fingerprint.hex() if revocation.fingerprint is not None else None,
        "user_id": revocation.user_id or None,
        "cluster_id": revocation.cluster_id or None,
        "reason": revocation.reason,
        "note": revocation.note,
        "at": _rfc3339(revocation.at),
        "by": revocation.by,
        "proved": revocation.proved,
        "undone_at": _rfc3339(revocation.undone_at) if revocation.undone_at is not None else None,
        "undone_by": revocation.undone_by,
        "can_be_undone": can_be_undone,
    }


def cursor(page: Page) -> str | None:
    return str(page.following) if page.following is not None else None


def _rfc3339(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"
