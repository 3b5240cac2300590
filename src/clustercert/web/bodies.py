"""The shapes of the CCE surface, for validation of what comes in and documentation of both ways.

Source: CCE API reference, cce_02_0248 (clustercert), "Reading a Specified Cluster", "Listing Clusters".
"""

import re
from datetime import UTC, datetime
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clustercert.errors import InvalidRequest
from clustercert.keypair import MAX_CSR_BYTES, csr_public_key
from clustercert.model import Ask, JsonObject
from clustercert.policy import LONGEST, MAX_DAYS, is_plain_text

M = TypeVar("M", bound=BaseModel)

MAX_REASON = 512
# The newer text of the API: `2025-01-01 16:00:00 +0000 UTC`.
_TIME = re.compile(r"\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2} \+0000 UTC", re.ASCII)


class AutopilotCertRequest(BaseModel):
    """The body of POST clustercert, Autopilot form. null counts as absent; unknown fields are ignored."""

    model_config = ConfigDict(
        strict=True, extra="ignore", hide_input_in_errors=True, title="AutopilotCertRequest"
    )

    duration: int | None = Field(
        default=None,
        description="Whole days: 1 to 1825, or -1 for the longest that policy and CA allow.",
        json_schema_extra={"minimum": LONGEST, "maximum": MAX_DAYS},
    )
    csr: str | None = Field(
        default=None,
        description="PKCS#10 in PEM; only its public key is used, and the answer has no client-key-data.",
        json_schema_extra={"maxLength": MAX_CSR_BYTES},
    )
    reason: str | None = Field(
        default=None,
        description="Kept in the audit; no control or bidirectional characters.",
        json_schema_extra={"maxLength": MAX_REASON},
    )

    def ask(self) -> Ask:
        """What is asked for. Raises InvalidRequest naming the field."""
        expire_at = self._expire_at()
        if self.duration is None and expire_at is None:
            raise InvalidRequest(
                f"duration: send whole days from 1 to {MAX_DAYS}, or -1 for the longest allowed."
            )
        if self.duration is not None and self.duration != LONGEST and not 1 <= self.duration <= MAX_DAYS:
            raise InvalidRequest(f"duration: must be 1 to {MAX_DAYS} days, or -1 for the longest allowed.")
        return Ask(
            duration=self.duration,
            expire_at=expire_at,
            public_key=csr_public_key(self.csr) if self.csr is not None else None,
            reason=_reason(self.reason),
        )

    def _expire_at(self) -> datetime | None:
        return None


class ClusterCertRequest(AutopilotCertRequest):
    """The body of POST clustercert. One of duration and expire_at is needed; expire_at wins."""

    model_config = ConfigDict(title="ClusterCertRequest")

    expire_at: str | None = Field(
        default=None, description="The end, 15 minutes to 5 years ahead: `2027-01-01 16:00:00 +0000 UTC`."
    )

    def _expire_at(self) -> datetime | None:
        if self.expire_at is None:
            return None
        try:
            if not _TIME.fullmatch(self.expire_at):
                raise ValueError("another form")
            return datetime.strptime(self.expire_at, "%Y-%m-%d %H:%M:%S +0000 UTC").replace(tzinfo=UTC)
        except ValueError as error:
            raise InvalidRequest("expire_at: write it like 2027-01-01 16:00:00 +0000 UTC.") from error


def parsed(body: JsonObject, shape: type[M]) -> M:
    """The body as its shape. Raises InvalidRequest naming the field that is wrong."""
    try:
        return shape.model_validate(body)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise InvalidRequest(f"{field}: {problem['msg']}.") from error


def _reason(text: str | None) -> str | None:
    if text is not None and (len(text) > MAX_REASON or not is_plain_text(text)):
        raise InvalidRequest(
            f"reason: must have at most {MAX_REASON} characters, none of them control or bidirectional ones."
        )
    return text


class _Answer(BaseModel):
    """Documentation of an answer; `render` and `cce` write the bytes."""

    model_config = ConfigDict(extra="allow")


class KubeconfigCluster(_Answer):
    """Table 6."""

    server: str
    certificate_authority_data: Annotated[str, Field(alias="certificate-authority-data")] = ""
    insecure_skip_tls_verify: Annotated[bool, Field(alias="insecure-skip-tls-verify")] = False


class KubeconfigNamedCluster(_Answer):
    """Table 5."""

    name: str
    cluster: KubeconfigCluster


class KubeconfigUser(_Answer):
    """Table 8."""

    client_certificate_data: Annotated[str, Field(alias="client-certificate-data")]
    client_key_data: Annotated[str, Field(alias="client-key-data")] = ""


class KubeconfigNamedUser(_Answer):
    """Table 7."""

    name: Literal["user"]
    user: KubeconfigUser


class KubeconfigContext(_Answer):
    """Table 10."""

    cluster: str
    user: str


class KubeconfigNamedContext(_Answer):
    """Table 9."""

    name: str
    context: KubeconfigContext


class Kubeconfig(_Answer):
    """The answer of clustercert, table 4."""

    kind: Literal["Config"]
    apiVersion: Literal["v1"]  # noqa: N815 - Kubernetes' name
    preferences: dict[str, object]
    clusters: list[KubeconfigNamedCluster]
    users: list[KubeconfigNamedUser]
    contexts: list[KubeconfigNamedContext]
    current_context: Annotated[str, Field(alias="current-context")]


class IssuancePreview(_Answer):
    """The answer to `?dryRun=All`: what would be issued, and how the policy came to it.

    Times as in RFC 3339, names as in RFC 4514.
    """

    kind: Literal["IssuancePreview"]
    rule: str
    common_name: str
    organizations: list[str]
    not_before: str
    not_after: str
    issuer: str
    key_type: str
    trace: dict[str, object]


class ClusterBody(_Answer):
    """One cluster, CCE's form."""

    kind: Literal["Cluster"]
    apiVersion: Literal["v3"]  # noqa: N815 - CCE's name
    metadata: dict[str, object]
    spec: dict[str, object]
    status: dict[str, object]


class ClusterListBody(_Answer):
    """All clusters of a project. `kind` really is Cluster."""

    kind: Literal["Cluster"]
    apiVersion: Literal["v3"]  # noqa: N815 - CCE's name
    items: list[ClusterBody]


class EndpointsBody(_Answer):
    """The answer of `/openapi`: a cluster's addresses."""

    metadata: dict[str, object]
    spec: dict[str, object]
    status: dict[str, object]


class ErrorBody(_Answer):
    """Every answer at or above 400 outside the Keystone subset; codes as in the CCE API reference."""

    errorCode: str  # noqa: N815 - CCE's name
    errorMessage: str  # noqa: N815 - CCE's name
    error_code: str
    error_msg: str
    message: str
    request_id: str
