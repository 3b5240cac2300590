"""Request and response bodies of the revocation API.

Source: CCE API reference, "Revoking Cluster Certificates", for clustercertrevoke. The other requests are our own.
"""

import base64
import binascii
from collections.abc import Iterable
from typing import get_args

from pydantic import BaseModel, Field

from clustercert.certificates.controls import FAST_CONTROLS, Control
from clustercert.certificates.recorder import MAX_NOTE, Reason, RevocationRecorder
from clustercert.certificates.revocation import RevocationPreview
from clustercert.http.body import RequestBody
from clustercert.model import JsonObject, Revocation, RevocationReason, rfc3339
from clustercert.model.errors import InvalidRequest
from clustercert.pki.leaf import MAX_NAME

# The maximum length in base64 characters. A signature by a 4096-bit RSA key has 684.
MAX_SIGNATURE = 1024


class ClusterCertRevokeRequest(RequestBody):
    """The body of POST clustercertrevoke: send exactly one of the fields. Null counts as absent."""

    userId: str | None = Field(  # noqa: N815 - CCE's name
        default=None,
        description="The user id: the CN of the certificates. The user may already be deleted.",
        json_schema_extra={"minLength": 1, "maxLength": MAX_NAME},
    )
    agencyId: str | None = Field(  # noqa: N815 - CCE's name
        default=None,
        description="The agency id, instead of a user id.",
        json_schema_extra={"minLength": 1, "maxLength": MAX_NAME},
    )

    def user_id(self) -> str:
        """Return the user or agency id. Raises InvalidRequest unless exactly one is set."""
        if self.userId is not None and self.agencyId is not None:
            raise InvalidRequest("userId, agencyId: send one of them, not both.")
        user_id = self.userId if self.userId is not None else self.agencyId
        if user_id is None:
            raise InvalidRequest("userId, agencyId: send one of them.")
        return user_id


class RevokeRequest(RequestBody):
    """The optional body of requests that revoke without a proof of possession."""

    reason: RevocationReason | None = Field(
        default=None,
        description="A reason from RFC 5280. A revocation for keyCompromise can't be undone.",
    )
    note: str | None = Field(
        default=None,
        description="Recorded in the audit log. No control or bidirectional characters.",
        json_schema_extra={"maxLength": MAX_NOTE},
    )

    def stated_reason(self) -> Reason:
        return Reason(self.reason or "unspecified", self.note)


class RevokeWithKeyRequest(RevokeRequest):
    """The body of revoke-with-key."""

    signature: str = Field(
        description="Base64 signature by the certificate's key (ECDSA or RSA PKCS#1 v1.5 with SHA-256, or Ed25519) over"
        " `clustercert revoke v1`, the service's name and the fingerprint, each followed by a line feed.",
        json_schema_extra={"minLength": 1, "maxLength": MAX_SIGNATURE},
    )

    def signature_bytes(self) -> bytes:
        """Decode the signature. Raises InvalidRequest if it is not base64."""
        try:
            if len(self.signature) > MAX_SIGNATURE:
                raise ValueError("too long")
            return base64.b64decode(self.signature, validate=True)
        except (ValueError, binascii.Error) as error:
            raise InvalidRequest(f"signature: send base64 of at most {MAX_SIGNATURE} characters.") from error


class RevocationBody(BaseModel):
    """A revocation. Times are RFC 3339."""

    id: int
    fingerprint: str | None = Field(description="Null if all certificates of a user or cluster are revoked.")
    user_id: str | None = Field(description="Null for all users.")
    cluster_id: str | None = Field(description="Null for all clusters.")
    reason: str = Field(json_schema_extra={"enum": list(get_args(RevocationReason))})
    note: str | None
    at: str
    by: str = Field(
        description="A user id, `holder` after a proof of possession, or `cli:` and an operating system account."
    )
    proved: bool = Field(description="Whether the holder proved possession of the certificate's key.")
    undone_at: str | None
    undone_by: str | None
    can_be_undone: bool = Field(description="Whether an operator can undo it now.")


class RevokedBody(RevocationBody):
    """A new revocation, and how its cluster enforces it."""

    enforced_by: list[str] | None = Field(
        description="The fast controls that are set up in the cluster, for one certificate without those that can't"
        " stop it. If there is none, its API server accepts revoked certificates until they expire. Null if all"
        " clusters are concerned, or if the cluster was removed."
    )
    lacking: str | None = Field(description="What the set-up of a control lacks; null if nothing is known.")


class RevocationPreviewBody(BaseModel):
    """Whose certificates a request would revoke."""

    user_id: str | None = Field(description="Null for all users.")
    user_name: str | None = Field(
        description="Null for all users, for deleted users, and for users of other identity systems who have not logged"
        " in. For admins, also null if the user has no valid certificate there."
    )
    cluster_id: str | None = Field(description="Null for all clusters.")
    cluster_name: str | None
    live: int = Field(description="How many certificates are valid and unrevoked now.")


class NamedUserBody(BaseModel):
    """A user of the built-in identity, or one of an issuer or Keystone who has logged in."""

    id: str
    name: str
    domain: str = Field(description="The domain's name, or the issuer's in the settings.")
    issuer: str = Field(
        description="The URL of the issuer or Keystone, or `built-in`. Empty if it is not known."
    )


class NamedUsersBody(BaseModel):
    """The users of a name, sorted by domain and id."""

    users: list[NamedUserBody]


class NamedUserIdBody(BaseModel):
    """A user with certificates."""

    id: str


class NamedUserIdsBody(BaseModel):
    """The users of a name in a cluster, sorted by id."""

    users: list[NamedUserIdBody]


class RevocationListBody(BaseModel):
    """A page of revocations, newest first."""

    revocations: list[RevocationBody]
    next: str | None = Field(description="The cursor of the next page; null on the last page.")


def preview_body(preview: RevocationPreview) -> JsonObject:
    cluster = preview.cluster
    return {
        "user_id": preview.user_id,
        "user_name": preview.user_name,
        "cluster_id": cluster.id if cluster is not None else None,
        "cluster_name": cluster.name if cluster is not None else None,
        "live": preview.live,
    }


def enforcement_body(controls: Iterable[Control] | None) -> JsonObject:
    """Return the fields of `RevokedBody` about enforcement. `None` if no cluster is concerned alone."""
    if controls is None:
        return {"enforced_by": None, "lacking": None}
    known = [each for each in controls if each.name in FAST_CONTROLS]
    return {
        "enforced_by": [each.name for each in known if each.set_up],
        "lacking": next((each.lacking for each in known if each.lacking is not None), None),
    }


def revocation_body(revocation: Revocation, recorder: RevocationRecorder) -> JsonObject:
    return {
        "id": revocation.id,
        "fingerprint": revocation.fingerprint.hex() if revocation.fingerprint is not None else None,
        "user_id": revocation.user_id or None,
        "cluster_id": revocation.cluster_id or None,
        "reason": revocation.reason,
        "note": revocation.note,
        "at": rfc3339(revocation.at),
        "by": revocation.by,
        "proved": revocation.proved,
        "undone_at": rfc3339(revocation.undone_at) if revocation.undone_at is not None else None,
        "undone_by": revocation.undone_by,
        "can_be_undone": recorder.can_undo(revocation),
    }
