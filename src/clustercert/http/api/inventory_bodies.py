"""Response bodies of the inventory API, and the filters for its lists."""

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import QueryParams

from clustercert.http import query
from clustercert.model import KeyOrigin
from clustercert.model.choices import CertificateState
from clustercert.store.inventory import CertificateFilter

# The filters for a cluster's certificates.
CLUSTER_FILTERS = (
    query.choice("own", "Only the caller's own certificates.", ("true",)),
    query.text("user", "Only this user, by id."),
    query.text("user_name", "Only users with this name, or certificates with it as their common name."),
    query.choice(
        "state",
        "Only certificates in this state. `revoked` includes expired ones.",
        get_args(CertificateState),
    ),
    query.time("expires_before", "Only certificates that expire before this time"),
    query.time("expires_after", "Only certificates that expire at or after this time"),
    query.time("seen_before", "Only certificates whose use was last reported before this time"),
    query.time("seen_after", "Only certificates whose use was last reported at or after this time"),
    query.choice("key_origin", "Only certificates with this key origin.", get_args(KeyOrigin)),
    query.choice("never_seen", "Only certificates whose use no API server has reported.", ("true",)),
    query.choice("format", "The format of the response; without it, Accept decides.", ("json", "csv")),
)
# The filters for lists that span clusters.
PROJECT_FILTERS = (query.text("cluster", "Only this cluster, by id."), *CLUSTER_FILTERS)

_USED_AFTER_REVOCATION = (
    "When an API server last allowed a request after its revocation; updated at most once an hour."
)


class CertificateBody(BaseModel):
    """An issued certificate. Times are RFC 3339; unknown or absent values are null."""

    model_config = ConfigDict(extra="allow")

    fingerprint: str = Field(
        description="SHA-256 of the DER, lower-case hex. kube-apiserver calls it X509SHA256."
    )
    serial: str = Field(description="Lower-case hex.")
    credential_number: str = Field(description="40 hex digits, part of its credential group.")
    state: CertificateState = Field(description="`revoked` if it is both revoked and expired.")
    cluster_id: str
    cluster_name: str | None = Field(description="Null if the cluster was removed.")
    project_id: str
    project_name: str | None = Field(description="Null if the project was deleted.")
    client_ca_id: str
    user_id: str
    user_name: str
    common_name: str = Field(
        description="The user name in the certificate: the user id, or a name chosen by the policy."
    )
    groups: list[str] = Field(description="Its Kubernetes groups, without the credential group.")
    rule: str | None = Field(description="The policy rule that allowed the certificate.")
    not_before: str
    not_after: str
    key_type: str
    key_origin: KeyOrigin
    auth_method: str
    source_address: str
    request_id: str
    reason: str | None
    issued_at: str
    revoked_at: str | None
    revoked_by: str | None
    revocation_reason: str | None
    first_seen_at: str | None
    last_seen_at: str | None = Field(description="When an API server last reported its use, to the minute.")
    altered_at: str | None = Field(
        description="When an API server last reported an altered copy of it; updated at most once an hour."
    )
    used_after_revocation_at: str | None = Field(description=_USED_AFTER_REVOCATION)


class WholeCertificateBody(CertificateBody):
    """A certificate with its PEM."""

    pem: str


class CertificateListBody(BaseModel):
    """A page of certificates, newest first."""

    certificates: list[CertificateBody]
    next: str | None = Field(
        description="The cursor of the next page; null on the last page. A page scans at most 2000 certificates, so"
        " a filtered page may be short or empty even if there is a next page."
    )


class CredentialBody(BaseModel):
    """An unexpired certificate in the access report."""

    fingerprint: str
    serial: str
    credential_number: str
    state: Literal["live", "revoked"]
    has_access: bool = Field(
        description="Whether the certificate gives access, as far as known here. A revoked certificate still gives"
        " access if no control stops it, or if an API server allowed it within a day."
    )
    used_after_revocation_at: str | None = Field(description=_USED_AFTER_REVOCATION)
    groups: list[str] = Field(
        description="The certificate's groups without the credential group, plus system:authenticated."
    )
    cluster_role: str | None = Field(
        description="The role bound to the credential group, if that is the certificate's only group."
    )
    not_after: str
    first_seen_at: str | None
    last_seen_at: str | None
    stopped_by: list[str] = Field(description="Names of the controls that stop it, fastest first.")


class UserAccessBody(BaseModel):
    """A user and their unexpired certificates, the longest-lived first."""

    user_id: str
    user_name: str
    groups: list[str]
    first_seen_at: str | None
    last_seen_at: str | None
    credentials: list[CredentialBody]


class GroupBody(BaseModel):
    """A Kubernetes group, and how many users and certificates have access through it."""

    name: str
    users: int
    credentials: int
    last_seen_at: str | None


class UnknownBody(BaseModel):
    """An identity from client certificates that the API server saw but this service did not issue."""

    fingerprint: str | None = Field(description="The most recent certificate's fingerprint; null if unknown.")
    has_access: bool = Field(
        description="False if the webhook refuses it, for its credential group or by the mode known-only."
    )
    hashes: int = Field(description="How many different certificates, or encodings of them, were seen.")
    username: str
    groups: list[str]
    first_seen_at: str
    last_seen_at: str


class ControlBody(BaseModel):
    """A control: a mechanism that can stop the cluster from accepting a certificate."""

    name: str
    set_up: bool = Field(
        description="Whether this service is configured to use it. For the webhook, the API server must also have"
        " called it within a day. `clustercert kubernetes verify` tests that it works."
    )
    lacking: str | None = Field(description="Missing parts of its set-up; null if none are known.")
    within: str = Field(description="How soon it takes effect.")
    does_not_stop: str


class AccessBody(BaseModel):
    """Who has access to a cluster."""

    cluster_id: str
    cluster_name: str
    at: str
    complete: bool = Field(description="False if the report has only the 2,000 longest-lived certificates.")
    users: list[UserAccessBody]
    groups: list[GroupBody]
    unknown_credentials: list[UnknownBody]
    controls: list[ControlBody]
    sees_use_after_revocation: bool = Field(
        description="Whether the API server sent audit events within a day. Without them, the use of a revoked"
        " certificate is not seen."
    )
    residual_risks: list[str] = Field(description="Access that can continue after a certificate is stopped.")


def certificate_filter(
    sent: QueryParams, filters: tuple[query.Parameter, ...]
) -> tuple[CertificateFilter, bool]:
    """Parse the filters of a list, and whether only the caller's own certificates are wanted.

    Raises InvalidRequest naming the invalid or unknown parameter.
    """
    values = query.parsed(sent, filters)
    values.pop("format", None)
    own = values.pop("own", None) is not None
    selected = CertificateFilter(
        cluster_id=values.pop("cluster", None),
        user_id=values.pop("user", None),
        never_seen=values.pop("never_seen", None) is not None,
        **values,
    )
    return selected, own
