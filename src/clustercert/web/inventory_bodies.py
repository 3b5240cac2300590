"""The shapes of the inventory, and the filters that its lists take."""

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import QueryParams

from clustercert.inventory import State, Wanted
from clustercert.model import KeyOrigin
from clustercert.web.query import (
    choice_parameter,
    id_parameters,
    id_text,
    one_of,
    require_known,
    sent_times,
    time_parameters,
)

FORMATS = ("json", "csv")

_STATES: tuple[State, ...] = get_args(State)
_ORIGINS: tuple[KeyOrigin, ...] = get_args(KeyOrigin)
_IDS = {"cluster": "Only of this cluster, by its id.", "user": "Only of this user, by their id."}
_TIMES = {
    "expires_before": "Only what ends before this time, RFC 3339.",
    "expires_after": "Only what ends at or after this time, RFC 3339.",
    "seen_before": "Only what an API server was last asked with before this time, RFC 3339.",
    "seen_after": "Only what an API server was asked with at or after this time, RFC 3339.",
}


class CertificateBody(BaseModel):
    """A certificate that was issued. Times as in RFC 3339; what isn't known, or isn't so, is null."""

    model_config = ConfigDict(extra="allow")

    fingerprint: str = Field(
        description="SHA-256 of the DER, lower-case hex: what kube-apiserver calls X509SHA256."
    )
    serial: str = Field(description="Lower-case hex.")
    credential_number: str | None = Field(
        description="40 hex digits: the certificate is in the group clustercert:credential:<number>."
    )
    state: State = Field(description="revoked wins over expired.")
    cluster_id: str
    project_id: str
    client_ca_id: str
    user_id: str
    user_name: str
    groups: list[str] = Field(
        description="Kubernetes groups, as they stand in the certificate, the credential group aside."
    )
    rule: str | None = Field(description="The rule of the policy by which it was issued.")
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
    revoked_why: str | None
    first_seen_at: str | None
    last_seen_at: str | None = Field(
        description="When an API server was last seen to be asked with it, to the minute."
    )
    altered_at: str | None = Field(
        description="When an API server last reported an altered copy of it; told once an hour."
    )


class WholeCertificateBody(CertificateBody):
    """The same with the certificate itself."""

    pem: str


class CertificateListBody(BaseModel):
    """Some certificates, the newest first."""

    certificates: list[CertificateBody]
    next: str | None = Field(
        description="The cursor of the next page; null at the end. A page looks at 2000 certificates at most, so with"
        " filters it may be short, or empty, and have a next one all the same."
    )


class CredentialBody(BaseModel):
    """A certificate that has not ended."""

    fingerprint: str
    serial: str
    credential_number: str | None
    state: Literal["live", "revoked"]
    gets_in: bool = Field(
        description="Whether it opens the cluster, as far as this service can know: also a revoked one, where nothing"
        " is set up that would keep it out."
    )
    groups: list[str] = Field(
        description="Those of the certificate, the credential group aside, and system:authenticated."
    )
    cluster_role: str | None = Field(
        description="What the credential group is bound to, where it is the only group."
    )
    not_after: str
    first_seen_at: str | None
    last_seen_at: str | None
    stopped_by: list[str] = Field(description="Names of ways_to_stop, the quickest first.")


class HolderBody(BaseModel):
    """A user and their credentials, the longest-lived first."""

    user_id: str
    user_name: str
    groups: list[str]
    first_seen_at: str | None
    last_seen_at: str | None
    credentials: list[CredentialBody]


class GroupBody(BaseModel):
    """A Kubernetes group, and how many get in with it."""

    name: str
    users: int
    credentials: int
    last_seen_at: str | None


class UnknownBody(BaseModel):
    """Somebody whose client certificates the API server saw and this service didn't issue."""

    fingerprint: str | None = Field(description="Of the certificate seen last; null where none is known.")
    hashes: int = Field(description="How many certificates were seen, or encodings of them.")
    username: str
    groups: list[str]
    first_seen_at: str
    last_seen_at: str


class WayBody(BaseModel):
    """A way to keep a credential out, and how fast it is."""

    name: str
    set_up: bool = Field(
        description="Whether this service was told to use it, and for the webhook, whether the API server asked within"
        " a day; `clustercert kubernetes verify` proves that it works."
    )
    lacking: str | None = Field(
        description="What was begun and isn't done; null where nothing is known to lack."
    )
    within: str
    does_not_stop: str


class AccessBody(BaseModel):
    """Who can still get into a cluster."""

    cluster_id: str
    cluster_name: str
    at: str
    complete: bool = Field(
        description="False where the cluster has more than were gone through: the 2,000 longest-lived ones."
    )
    users: list[HolderBody]
    groups: list[GroupBody]
    unknown_credentials: list[UnknownBody]
    ways_to_stop: list[WayBody]
    what_remains: list[str] = Field(description="What goes on after a credential is stopped.")


def documented(*ids: str) -> list[dict[str, Any]]:
    """The query parameters of a list, for OpenAPI; `ids` are those of `cluster` and `user` that it takes."""
    return [
        *id_parameters({name: _IDS[name] for name in ids}),
        choice_parameter("state", "Only those in this state. revoked wins over expired.", _STATES),
        *time_parameters(_TIMES),
        choice_parameter("key_origin", "Only those whose key was made so.", _ORIGINS),
        choice_parameter("never_seen", "Only those that no API server was seen to be asked with.", ["true"]),
        choice_parameter("format", "The form of the answer; without it, Accept decides.", FORMATS),
    ]


def wanted(query: QueryParams, *ids: str) -> Wanted:
    """What a list is asked for. Raises InvalidRequest naming the parameter; also for one that doesn't exist."""
    require_known(query, {*ids, *_TIMES, "state", "key_origin", "never_seen", "format", "limit", "cursor"})
    times = sent_times(query, _TIMES)
    return Wanted(
        cluster_id=id_text("cluster", query.get("cluster")),
        user_id=id_text("user", query.get("user")),
        state=one_of("state", query.get("state"), _STATES),
        key_origin=one_of("key_origin", query.get("key_origin"), _ORIGINS),
        never_seen=one_of("never_seen", query.get("never_seen"), ("true",)) is not None,
        expires_before=times.get("expires_before"),
        expires_after=times.get("expires_after"),
        seen_before=times.get("seen_before"),
        seen_after=times.get("seen_after"),
    )


def answer_format(text: str) -> str:
    """Raises InvalidRequest."""
    return one_of("format", text, FORMATS) or "json"
