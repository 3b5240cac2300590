"""Bodies of the CCE API: validation of requests, and OpenAPI documentation of requests and responses.

Source: CCE API reference, cce_02_0248 (clustercert), "Reading a Specified Cluster", "Listing Clusters".
"""

import re
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from clustercert.http.body import RequestBody
from clustercert.model import IssueRequest, JsonObject, Preview, rfc3339
from clustercert.model.errors import InvalidRequest
from clustercert.pki.certificates import MAX_CSR_BYTES, csr_public_key
from clustercert.policy.lifetime import LONGEST, MAX_DAYS
from clustercert.policy.templates import is_plain_text

MAX_REASON = 512
# CCE's time format: `2025-01-01 16:00:00 +0000 UTC`.
_TIME = re.compile(r"\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2} \+0000 UTC", re.ASCII)


class AutopilotCertRequest(RequestBody):
    """The body of POST clustercert, Autopilot form. Null counts as absent; unknown fields are ignored."""

    duration: int | None = Field(
        default=None,
        description="Whole days: 1 to 1825, or -1 for the longest that policy and CA allow. The operator can raise the "
        "maximum to 1827 (api.max_duration).",
        json_schema_extra={"minimum": LONGEST, "maximum": MAX_DAYS},
    )
    csr: str | None = Field(
        default=None,
        description="PKCS#10 in PEM; only its public key is used, and the response has no client-key-data.",
        json_schema_extra={"maxLength": MAX_CSR_BYTES},
    )
    reason: str | None = Field(
        default=None,
        description="Recorded in the audit log; no control or bidirectional characters.",
        json_schema_extra={"maxLength": MAX_REASON},
    )

    def issue_request(self, max_days: int = MAX_DAYS) -> IssueRequest:
        """Validate the fields. Raises InvalidRequest naming the field. `max_days` is the longest duration."""
        expire_at = self._expire_at()
        if self.duration is None and expire_at is None:
            raise InvalidRequest(
                f"duration: send whole days from 1 to {max_days}, or -1 for the longest allowed."
            )
        if self.duration is not None and self.duration != LONGEST and not 1 <= self.duration <= max_days:
            raise InvalidRequest(f"duration: must be 1 to {max_days} days, or -1 for the longest allowed.")
        return IssueRequest(
            duration=self.duration,
            expire_at=expire_at,
            public_key=csr_public_key(self.csr) if self.csr is not None else None,
            reason=_reason(self.reason),
        )

    def _expire_at(self) -> datetime | None:
        return None


class ClusterCertRequest(AutopilotCertRequest):
    """The body of POST clustercert. Send duration or expire_at. If both are sent, expire_at applies."""

    expire_at: str | None = Field(
        default=None,
        description="The end of validity, 15 minutes to 5 years ahead: `2027-01-01 16:00:00 +0000 UTC`.",
    )

    def _expire_at(self) -> datetime | None:
        if self.expire_at is None:
            return None
        try:
            if not _TIME.fullmatch(self.expire_at):
                raise ValueError("not in CCE's time format")
            return datetime.strptime(self.expire_at, "%Y-%m-%d %H:%M:%S +0000 UTC").replace(tzinfo=UTC)
        except ValueError as error:
            raise InvalidRequest("expire_at: write it like 2027-01-01 16:00:00 +0000 UTC.") from error


def _reason(text: str | None) -> str | None:
    if text is not None and (len(text) > MAX_REASON or not is_plain_text(text)):
        raise InvalidRequest(
            f"reason: must have at most {MAX_REASON} characters, without control or bidirectional characters."
        )
    return text


class _Response(BaseModel):
    """Base of the models that document responses. The modules `clustercert` and `clusters` render the responses."""

    model_config = ConfigDict(extra="allow")


class KubeconfigCluster(_Response):
    """The address and CA of a cluster in the kubeconfig: table 6 of cce_02_0248."""

    server: str
    certificate_authority_data: Annotated[str, Field(alias="certificate-authority-data")] = ""
    insecure_skip_tls_verify: Annotated[bool, Field(alias="insecure-skip-tls-verify")] = False


class KubeconfigNamedCluster(_Response):
    """A cluster in the kubeconfig: table 5 of cce_02_0248."""

    name: str
    cluster: KubeconfigCluster


class KubeconfigUser(_Response):
    """A user's credential in the kubeconfig: table 8 of cce_02_0248."""

    client_certificate_data: Annotated[str, Field(alias="client-certificate-data")]
    client_key_data: Annotated[str, Field(alias="client-key-data")] = ""


class KubeconfigNamedUser(_Response):
    """A user in the kubeconfig: table 7 of cce_02_0248."""

    name: Literal["user"]
    user: KubeconfigUser


class KubeconfigContext(_Response):
    """The cluster and user of a context in the kubeconfig: table 10 of cce_02_0248."""

    cluster: str
    user: str


class KubeconfigNamedContext(_Response):
    """A context in the kubeconfig: table 9 of cce_02_0248."""

    name: str
    context: KubeconfigContext


class Kubeconfig(_Response):
    """The response to clustercert: table 4 of cce_02_0248."""

    kind: Literal["Config"]
    apiVersion: Literal["v1"]  # noqa: N815 - Kubernetes' name
    preferences: dict[str, object]
    clusters: list[KubeconfigNamedCluster]
    users: list[KubeconfigNamedUser]
    contexts: list[KubeconfigNamedContext]
    current_context: Annotated[str, Field(alias="current-context")]


class IssuancePreview(_Response):
    """The response to `?dryRun=All`: the certificate that would be issued, and the decision trace.

    Times are RFC 3339. The issuer's name is as in RFC 4514.
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


def preview_body(preview: Preview) -> JsonObject:
    return {
        "kind": "IssuancePreview",
        "rule": preview.grant.rule,
        "common_name": preview.grant.username,
        "organizations": list(preview.organizations),
        "not_before": rfc3339(preview.grant.not_before),
        "not_after": rfc3339(preview.grant.not_after),
        "issuer": preview.issuer,
        "key_type": preview.key_type,
        "trace": dict(preview.grant.trace),
    }


class ClusterBody(_Response):
    """A cluster in CCE's format."""

    kind: Literal["Cluster"]
    apiVersion: Literal["v3"]  # noqa: N815 - CCE's name
    metadata: dict[str, object]
    spec: dict[str, object]
    status: dict[str, object]


class ClusterListBody(_Response):
    """All clusters in a project. The `kind` of the list is Cluster, as in CCE."""

    kind: Literal["Cluster"]
    apiVersion: Literal["v3"]  # noqa: N815 - CCE's name
    items: list[ClusterBody]


class EndpointsBody(_Response):
    """The response to `/openapi`: a cluster's addresses."""

    metadata: dict[str, object]
    spec: dict[str, object]
    status: dict[str, object]
