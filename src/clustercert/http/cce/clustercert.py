"""The routes for clustercert, which issue a certificate and return it as a kubeconfig.

| CCE's field                                  | our value                          | why                              |
| -------------------------------------------- | ---------------------------------- | -------------------------------- |
| kind, apiVersion, preferences                | Config, v1, {}                     | cce_02_0248, table 4             |
| clusters[0]                                  | internalCluster, with the CA       | otcextensions reads index 0      |
| externalCluster, if there is an EIP          | no CA, insecure-skip-tls-verify    | table 6; the names that CCE uses |
| externalCluster, `insecure_external = false` | with the CA                        | clients use these names          |
| externalClusterTLSVerify, if there is an EIP | with the CA                        | real responses have it           |
| customSAN-N                                  | one for each further address       | real responses have the contexts |
| users[0]                                     | `user`; no key if a CSR was sent   | table 7                          |
| users[0] of a cluster with tokens            | `user` with `token`                | CCE has no such clusters         |
| current-context                              | `external` with an EIP, `internal` | table 4                          |

Source: CCE API reference, cce_02_0248, tables 4 to 10. `docs/cce-divergences.md` lists the differences between this
service and CCE.
"""

import functools
import json
import re
from base64 import b64encode
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from urllib.parse import quote

import yaml
from fastapi import APIRouter, Request
from pydantic import AliasPath, Field
from starlette.responses import Response

from clustercert.http import responses
from clustercert.http.body import (
    LIFETIME_LIMITS,
    RequestBody,
    bounded_lifetime,
    parsed,
    received,
    require_json,
)
from clustercert.http.cce.clusters import CCE_BODY, CLUSTER, MAX_CCE_BODY, CceBody
from clustercert.http.context import context_of
from clustercert.http.dependencies import Services, ServicesDep, authenticated
from clustercert.http.openapi import ERRORS, described, json_body
from clustercert.http.responses import ResponseBody, Time, prefers
from clustercert.issuance.authentication import RepeatableAuthentication
from clustercert.model import Cluster, Issued, IssueRequest, JsonObject, rfc3339
from clustercert.model.choices import CredentialKind
from clustercert.model.errors import InvalidRequest
from clustercert.pki.certificates import MAX_CSR_BYTES, csr_public_key
from clustercert.pki.keys import key_pem
from clustercert.pki.leaf import der_pem
from clustercert.policy.lifetime import LONGEST, MAX_DAYS
from clustercert.policy.templates import MAX_REASON, reason_problem

# CCE's time format: `2025-01-01 16:00:00 +0000 UTC`.
_TIME = re.compile(r"\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2} \+0000 UTC", re.ASCII)


class AutopilotCertRequest(RequestBody):
    """The body of POST clustercert in the API of CCE Autopilot. Null counts as absent; unknown fields are ignored."""

    duration: int | None = Field(
        default=None,
        description="Whole days: 1 to 1825, or -1 for the longest lifetime that policy and CA allow. The operator can "
        "raise the maximum to 1827 (api.max_duration).",
        json_schema_extra={"minimum": LONGEST, "maximum": MAX_DAYS},
    )
    expires_in: int | None = Field(
        default=None,
        description="The lifetime in seconds, from the time of the request; instead of duration and expire_at.",
        json_schema_extra=LIFETIME_LIMITS,
    )
    shorten: bool | None = Field(
        default=None,
        description="With expires_in: if policy or CA allow less, issue the longest lifetime allowed instead"
        " of answering 403.",
    )
    csr: str | None = Field(
        default=None,
        description="PKCS#10 in PEM; only its public key is used, and the response has no client-key-data.",
        json_schema_extra={"maxLength": MAX_CSR_BYTES},
    )
    reason: str | None = Field(
        default=None,
        description="The reason, for the audit log; no control or bidirectional characters.",
        json_schema_extra={"maxLength": MAX_REASON},
    )
    access_request: str | None = Field(
        default=None,
        description="The id of the caller's access request, whose groups the certificate gets, too. The certificate is"
        " not valid longer than the access.",
    )
    credential: CredentialKind | None = Field(
        default=None,
        description="`certificate` (the default) or, if the cluster's credentials are tokens, `token`: the"
        " user in the response then has a token instead of a certificate. Status 409 if the cluster has"
        " the other kind.",
    )

    def issue_request(self, max_days: int = MAX_DAYS) -> IssueRequest:
        """Validate the fields, and return the request for a certificate.

        `max_days` is the longest duration allowed, in days.

        Raises InvalidRequest, which names the invalid field.
        """
        expire_at, expires_in = self._expire_at(), self._expires_in()
        if expires_in is not None and (self.duration is not None or expire_at is not None):
            raise InvalidRequest("expires_in: send it without duration and expire_at.")
        if self.duration is None and expire_at is None and expires_in is None:
            raise InvalidRequest(
                f"duration: send whole days from 1 to {max_days}, or -1 for the longest allowed."
            )
        if self.duration is not None and self.duration != LONGEST and not 1 <= self.duration <= max_days:
            raise InvalidRequest(f"duration: must be 1 to {max_days} days, or -1 for the longest allowed.")
        return IssueRequest(
            duration=self.duration,
            expire_at=expire_at,
            expires_in=expires_in,
            shorten=self.shorten is True,
            public_key=csr_public_key(self.csr) if self.csr is not None else None,
            reason=_reason(self.reason),
            access_request=self.access_request,
            credential=self.credential or "certificate",
        )

    def _expire_at(self) -> datetime | None:
        return None

    def _expires_in(self) -> timedelta | None:
        if self.expires_in is None:
            if self.shorten:
                raise InvalidRequest("shorten: send it with expires_in.")
            return None
        return bounded_lifetime("expires_in", self.expires_in)


class ClusterCertRequest(AutopilotCertRequest):
    """The body of POST clustercert. Send duration, expire_at or expires_in.

    If duration and expire_at are sent, expire_at applies.
    """

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
    if text is not None and (problem := reason_problem(text)) is not None:
        raise InvalidRequest(f"reason: {problem}.")
    return text


class KubeconfigCluster(CceBody):
    """The address and CA of a cluster in the kubeconfig: table 6 of cce_02_0248."""

    server: str
    certificate_authority_data: Annotated[str, Field(alias="certificate-authority-data")] = ""
    insecure_skip_tls_verify: Annotated[bool, Field(alias="insecure-skip-tls-verify")] = False


class KubeconfigNamedCluster(CceBody):
    """A cluster in the kubeconfig: table 5 of cce_02_0248."""

    name: str
    cluster: KubeconfigCluster


class KubeconfigUser(CceBody):
    """A user's credential in the kubeconfig: table 8 of cce_02_0248. CCE's documents have no token."""

    client_certificate_data: Annotated[str, Field(alias="client-certificate-data")] = ""
    client_key_data: Annotated[str, Field(alias="client-key-data")] = ""
    token: str = ""


class KubeconfigNamedUser(CceBody):
    """A user in the kubeconfig: table 7 of cce_02_0248."""

    name: Literal["user"]
    user: KubeconfigUser


class KubeconfigContext(CceBody):
    """The cluster and user of a context in the kubeconfig: table 10 of cce_02_0248."""

    cluster: str
    user: str


class KubeconfigNamedContext(CceBody):
    """A context in the kubeconfig: table 9 of cce_02_0248."""

    name: str
    context: KubeconfigContext


class Kubeconfig(CceBody):
    """The response to clustercert: table 4 of cce_02_0248."""

    kind: Literal["Config"]
    apiVersion: Literal["v1"]  # noqa: N815 - Kubernetes' name
    preferences: dict[str, object]
    clusters: list[KubeconfigNamedCluster]
    users: list[KubeconfigNamedUser]
    contexts: list[KubeconfigNamedContext]
    current_context: Annotated[str, Field(alias="current-context")]


class IssuancePreview(ResponseBody, CceBody):
    """The response to `?dryRun=All`: the certificate that would be issued, and the decision trace.

    Times are in the format of RFC 3339. `issuer` is the CA's name in the format of RFC 4514.
    """

    kind: Literal["IssuancePreview"]
    rule: str = Field(validation_alias=AliasPath("grant", "rule"))
    common_name: str = Field(validation_alias=AliasPath("grant", "username"))
    organizations: list[str]
    not_before: Time = Field(validation_alias=AliasPath("grant", "not_before"))
    not_after: Time = Field(validation_alias=AliasPath("grant", "not_after"))
    issuer: str
    key_type: str
    credential: CredentialKind
    left_out: list[str] = Field(
        validation_alias=AliasPath("grant", "left_out"),
        description="The groups that have no role in the cluster, and that a token therefore lacks.",
    )
    access_request: str | None = Field(
        validation_alias=AliasPath("grant", "access_request_id"),
        description="The id of the access request that gives some of the groups; null without a request.",
    )
    trace: dict[str, object] = Field(validation_alias=AliasPath("grant", "trace"))


PATH = CLUSTER + "/clustercert"
# A GET request has no body that could state a duration. The certificate is valid for a month, as in the vendor's API.
GET_DAYS = 30
# Bodies up to this many bytes are cached with their parsed form. Most bodies contain only a duration.
MAX_CACHED_BODY = 64
USER = "user"

# Some proxies refuse answers with more than 4 KB of headers.
_MAX_LEFT_OUT = 2000
_YAML = ("application/yaml", "application/x-yaml", "text/yaml")

Shape = type[AutopilotCertRequest]


async def handle(
    request: Request, services: Services, project_id: str, cluster_id: str, shape: Shape | None
) -> Response:
    """Check the body's size, the caller and the body's content, then issue a certificate, or preview it in a dry run.

    `shape` is the model of the body; `None` for GET, which has no body.
    """
    raw = await received(request, services.options.body_timeout, MAX_CCE_BODY)
    authenticate = functools.partial(authenticated, request, raw, services)
    authentication = RepeatableAuthentication(services.generation, authenticate)
    caller = await authentication.authenticate()
    context = context_of(request)
    context.dry_run = _is_dry_run(request)
    context.certificate_of = (project_id, cluster_id)
    issue_request = context.issue_request = _issue_request(request, raw, shape, services.options.max_duration)
    if context.dry_run:
        preview = await services.issuance.preview(caller, project_id, cluster_id, issue_request)
        return responses.private(IssuancePreview.render(preview, kind="IssuancePreview"))
    issued = await services.issuance.issue(caller, project_id, cluster_id, issue_request, authentication)
    context.log_fields |= {
        "target_cluster_id": issued.cluster.id,
        "target_username": issued.grant.username,
        "target_fingerprint": issued.fingerprint,
    }
    document = kubeconfig(issued, insecure_external=services.options.insecure_external)
    if prefers(request, _YAML):
        return responses.Rendered(to_yaml(document), _headers(issued, b"yaml"))
    return responses.Rendered(to_json(document), _headers(issued, b"json"))


def _is_dry_run(request: Request) -> bool:
    """Whether the query has dryRun=All. Other values raise InvalidRequest, as in the Kubernetes API.

    Other unknown parameters are ignored, but a misspelled dryRun must not issue a certificate.
    """
    if not request.scope["query_string"]:
        return False
    for name in request.query_params:
        if name != "dryRun" and name.lower() == "dryrun":
            raise InvalidRequest(f"{name}: unknown query parameter. Write it dryRun.")
    value = request.query_params.get("dryRun")
    if value not in (None, "All"):
        raise InvalidRequest("dryRun: the only value is All.")
    return value is not None


def _issue_request(request: Request, raw: bytes, shape: Shape | None, max_days: int) -> IssueRequest:
    if shape is None:
        return IssueRequest(duration=GET_DAYS, shorten=True)
    require_json(request)
    parse = _parse_cached if len(raw) <= MAX_CACHED_BODY else _parse
    return parse(raw, shape, max_days)


def _parse(raw: bytes, shape: Shape, max_days: int) -> IssueRequest:
    return parsed(raw, shape).issue_request(max_days)


_parse_cached = functools.lru_cache(maxsize=1024)(_parse)


def _headers(issued: Issued, subtype: bytes) -> Iterable[tuple[bytes, bytes]]:
    request_id, left_out, token = issued.grant.access_request_id, issued.grant.left_out, issued.token
    return (
        (b"cache-control", b"no-store"),
        (b"vary", b"Accept"),
        (b"x-clustercert-serial", issued.serial.encode()),
        (b"x-clustercert-fingerprint", issued.fingerprint.encode()),
        (b"x-clustercert-not-after", rfc3339(issued.grant.not_after).encode()),
        *(((b"x-clustercert-access-request", request_id.encode()),) if request_id is not None else ()),
        *(((b"x-clustercert-left-out", left_out_header(left_out).encode()),) if left_out else ()),
        *(
            ((b"x-clustercert-token-expires", rfc3339(token.expires_at).encode()),)
            if token is not None
            else ()
        ),
        (b"content-type", b"application/" + subtype),
    )


def left_out_header(groups: Iterable[str]) -> str:
    """Return the names of groups, percent-encoded and separated by commas: as many as proxies let through."""
    header = ""
    for name in groups:
        longer = f"{header},{quote(name, safe=':/@')}".removeprefix(",")
        if len(longer) > _MAX_LEFT_OUT:
            break
        header = longer
    return header


def kubeconfig(issued: Issued, *, insecure_external: bool) -> JsonObject:
    """Render the kubeconfig in CCE's field order. Certificates and keys are base64 of PEM.

    With a token, clients verify every address, because an unverified server could keep the token.
    """
    is_insecure = insecure_external and issued.token is None
    entries = _entries(issued.cluster, insecure_external=is_insecure)
    return {
        "kind": "Config",
        "apiVersion": "v1",
        "preferences": {},
        "clusters": [{"name": cluster, "cluster": address} for _, cluster, address in entries],
        "users": [{"name": USER, "user": _credential(issued)}],
        "contexts": [
            {"name": context, "context": {"cluster": cluster, "user": USER}}
            for context, cluster, _ in entries
        ],
        "current-context": "external" if issued.cluster.external_url else "internal",
    }


def to_json(document: JsonObject) -> bytes:
    return json.dumps(document).encode("ascii")


def to_yaml(document: JsonObject) -> bytes:
    return yaml.safe_dump(document, sort_keys=False, default_flow_style=False, width=1_000_000).encode()


def _credential(issued: Issued) -> dict[str, str]:
    if issued.token is not None:
        return {"token": issued.token.text}
    credential = {"client-certificate-data": _base64(der_pem(issued.leaf_der))}
    if issued.private_key is not None:
        credential["client-key-data"] = _base64(key_pem(issued.private_key))
    return credential


def _entries(cluster: Cluster, *, insecure_external: bool) -> list[tuple[str, str, JsonObject]]:
    """Return triples of context name, cluster name and cluster entry, in CCE's order."""
    ca_b64 = _base64(cluster.server_ca_pem)

    def verified(url: str) -> JsonObject:
        return {"server": url, "certificate-authority-data": ca_b64}

    entries = [("internal", "internalCluster", verified(cluster.internal_url))]
    if external := cluster.external_url:
        # kubectl rejects a CA together with insecure-skip-tls-verify.
        unverified: JsonObject = {"server": external, "insecure-skip-tls-verify": True}
        address = unverified if insecure_external else verified(external)
        entries.append(("external", "externalCluster", address))
        entries.append(("externalTLSVerify", "externalClusterTLSVerify", verified(external)))
    for number, url in enumerate(cluster.san_urls):
        entries.append((f"customSAN-{number}", f"customSAN-{number}", verified(url)))
    return entries


def _base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")


_KUBECONFIG = described(
    "The kubeconfig; the preview if dryRun=All.",
    Kubeconfig | IssuancePreview,
    content={"application/yaml": {"$ref": "#/components/schemas/Kubeconfig"}},
    headers={
        "X-Clustercert-Serial": "The serial, lower-case hex; for a token, the hex digits of its jti.",
        "X-Clustercert-Fingerprint": "SHA-256 of the certificate's DER, or of the token's jti, lower-case hex.",
        "X-Clustercert-Not-After": "The end of validity, RFC 3339.",
        "X-Clustercert-Access-Request": "The id of the access request that gives some of the groups; absent without a"
        " request.",
        "X-Clustercert-Left-Out": "The groups that have no role in the cluster, and that the token therefore lacks:"
        " percent-encoded, separated by commas, and at most 2000 characters of them. Absent if there are none.",
        "X-Clustercert-Token-Expires": "When the token itself expires, RFC 3339; absent for a certificate. If this is"
        " later than X-Clustercert-Not-After, the service ends the token earlier.",
    },
    errors=ERRORS | {409: "The access request can't be used, or the cluster has another kind of credential."},
)
# The routes parse dryRun themselves, because FastAPI does not run the most frequent route, POST clustercert.
_DRY_RUN = {
    "parameters": [
        {
            "name": "dryRun",
            "in": "query",
            "description": "All: return an IssuancePreview; sign and record nothing.",
            "schema": {"type": "string", "enum": ["All"]},
        }
    ]
}

router = APIRouter(tags=["CCE"])


def _sent(shape: Shape) -> dict[str, Any]:
    return json_body(shape, limit=MAX_CCE_BODY) | _DRY_RUN


@router.post(PATH, responses=_KUBECONFIG, openapi_extra=_sent(ClusterCertRequest))
async def create_clustercert(
    request: Request, project_id: str, cluster_id: str, services: ServicesDep
) -> Response:
    """Obtain a cluster certificate as a kubeconfig.

    The certificate is for the caller. The policy decides the certificate's groups and limits its lifetime.
    """
    return await handle(request, services, project_id, cluster_id, ClusterCertRequest)


@router.post(
    "/autopilot/v3/projects/{project_id}/clusters/{cluster_id}/clustercert",
    responses=_KUBECONFIG,
    openapi_extra=_sent(AutopilotCertRequest),
)
async def create_autopilot_clustercert(
    request: Request, project_id: str, cluster_id: str, services: ServicesDep
) -> Response:
    """Obtain a cluster certificate as a kubeconfig, for Autopilot. Like POST clustercert, but without expire_at."""
    return await handle(request, services, project_id, cluster_id, AutopilotCertRequest)


@router.get(PATH, responses=_KUBECONFIG, openapi_extra=CCE_BODY | _DRY_RUN, deprecated=True)
async def get_clustercert(
    request: Request, project_id: str, cluster_id: str, services: ServicesDep
) -> Response:
    """Obtain a cluster certificate as a kubeconfig, deprecated form.

    The certificate is valid for 30 days, or for the longest lifetime allowed if that is shorter.
    """
    return await handle(request, services, project_id, cluster_id, None)
