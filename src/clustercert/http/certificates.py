"""Routes about issued certificates: lists, single certificates, and revocation lists."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Literal

from cryptography import x509
from fastapi import APIRouter, Depends, Query, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.responses import Response

from clustercert.certificates.credential_end import RefusedRequests
from clustercert.certificates.recorder import certificate_name
from clustercert.csv_text import csv_text
from clustercert.http import IN_CLUSTER, IN_PROJECT, OWN, openapi, query, responses
from clustercert.http.dependencies import Call, CallDep, ServicesDep
from clustercert.http.openapi import ERRORS, described
from clustercert.http.paging import PageDep, fitting, page_body
from clustercert.http.responses import Hex, ResponseBody, Time, prefers
from clustercert.model import JsonObject, KeyOrigin, Revocation
from clustercert.model.choices import CaState, CertificateState, CredentialKind, RefusalState
from clustercert.model.errors import NotFound
from clustercert.model.identity import KnownUser
from clustercert.model.token_objects import account_name
from clustercert.pki.certificates import chain_pem
from clustercert.pki.crl import crl_pem
from clustercert.store.certificates.lists import CertificateFilter, Page, PlaceNames
from clustercert.store.certificates.views import CertificateView


class ListParameters(BaseModel):
    """Further query parameters of lists of certificates."""

    own: query.Flag | None = Field(default=None, description="Only the caller's own certificates.")
    format: Literal["json", "csv"] | None = Field(
        default=None, description="The format of the response. By default, the header Accept decides."
    )


def _digits(text: str) -> str:
    name = certificate_name(text, abbreviated=True)
    if name is None:
        raise ValueError("write a fingerprint or its first digits, a credential number, a serial, or JTI=ID")
    return name


_Certificate = Annotated[query.Text, AfterValidator(_digits)]
ListDep = Annotated[ListParameters, Query()]
FilterDep = Annotated[
    CertificateFilter, Depends(query.parsed_filter(CertificateFilter, certificate=_Certificate))
]
ClusterFilterDep = Annotated[
    CertificateFilter,
    Depends(query.parsed_filter(CertificateFilter, without=["cluster", "domain"], certificate=_Certificate)),
]


USED_AFTER_REVOCATION = (
    "When an API server last allowed a request with the certificate after its revocation; updated at most"
    " once a"
    " minute."
)
REFUSED_AT = (
    "When the webhook last told the API server to refuse the revoked certificate; updated at most once a"
    " minute."
)
REFUSAL = (
    "Whether a refusal was seen; null if the certificate is not revoked. `used`: an API server"
    " allowed a request after the revocation. `refused`: the webhook told the API server to refuse a request."
    " `expected`: a control should stop the certificate, but nothing was seen yet. `only_writes`: the same for"
    " writes, and the API server accepts reads. `unknown`: the cluster is `quiet`, so nothing shows whether its API"
    " server still asks the webhook. `none`: nothing stops the certificate before it expires."
)
EXPECTED_BY = "By when the API server should refuse the revoked certificate, or its writes."
REFUSES = (
    "Which requests with revoked certificates the API server refuses. `bound`: only if the certificate has"
    " a binding. `writes`: only requests that write."
)
WITHIN_SECONDS = (
    "How long after a revocation the API server should refuse these requests: with the webhook, a second more than the"
    " cluster's `unauthorized_ttl_seconds`; with the other controls, while this service reaches the API server. Null"
    " if the API server refuses none."
)
ACTOR_NAME = "The actor's name with the domain. Null without an actor, and if the actor is not a known user."


class CertificateBody(ResponseBody):
    """An issued certificate. Times are in the format of RFC 3339; unknown or absent values are null."""

    model_config = ConfigDict(extra="allow")

    fingerprint: Hex = Field(
        description="SHA-256 of the DER, lower-case hex. kube-apiserver calls it X509SHA256."
    )
    serial: str = Field(description="Lower-case hex; for a token, the hex digits of its jti.")
    credential_number: str = Field(
        description="40 hex digits, which are part of the certificate's credential group."
    )
    state: CertificateState = Field(description="`revoked` if the certificate is both revoked and expired.")
    cluster_id: str
    cluster_name: str | None = Field(description="Null if the cluster was removed.")
    project_id: str
    project_name: str | None = Field(description="Null if the project was deleted.")
    project_domain: str | None = Field(description="The name of the project's domain. Null if unknown.")
    client_ca_id: str = Field(validation_alias="ca_id")
    client_ca_state: CaState | None = Field(
        description="If `retiring` or `retired`, API servers do not accept the certificate for its whole lifetime,"
        " because the client CA is replaced. Null if the cluster was removed."
    )
    user_id: str
    user_name: str
    user_domain: str | None = Field(
        description="The name of the user's domain or issuer. Null if unknown, such as for a deleted user."
    )
    common_name: str = Field(
        description="The user name in the certificate: the user id, or a name chosen by the policy."
    )
    groups: list[str] = Field(
        description="The certificate's Kubernetes groups, without the credential group."
    )
    rule: str | None = Field(description="The policy rule that allowed the certificate.")
    access_request_id: str | None = Field(
        description="The access request that gives some of the groups; null without a request."
    )
    not_before: Time
    not_after: Time
    kind: CredentialKind = Field(
        description="Whether the credential is a certificate, or a token of a service account."
    )
    key_type: str = Field(description="Empty for a token.")
    key_origin: KeyOrigin
    auth_method: str
    source_address: str
    request_id: str
    reason: str | None
    issued_at: Time
    revoked_at: Time | None
    revoked_by: str | None
    revoked_by_name: str | None = Field(description=ACTOR_NAME)
    revocation_reason: str | None
    first_seen_at: Time | None
    last_seen_at: Time | None = Field(
        description="When an API server last reported a use of the certificate, to the minute."
    )
    altered_at: Time | None = Field(
        description="When an API server last reported an altered copy of the certificate; updated at most once an"
        " hour."
    )
    used_after_revocation_at: Time | None = Field(description=USED_AFTER_REVOCATION)
    refused_at: Time | None = Field(validation_alias="refused_after_revocation_at", description=REFUSED_AT)


RevocationScope = Literal["certificate", "user_in_cluster", "user", "cluster"]


class CoveringRevocationBody(ResponseBody):
    """A revocation in force that covers a certificate."""

    id: int
    covers: RevocationScope = Field(
        description="What the revocation covers, as of its time: this certificate, all certificates of the user in this"
        " cluster or in all clusters, or all certificates of the cluster."
    )
    at: Time
    by: str
    by_name: str | None = Field(description=ACTOR_NAME)
    reason: str
    can_be_undone: bool = Field(
        description="Whether an operator can undo the revocation now. Never for one token, whose account is deleted."
    )


class WholeCertificateBody(CertificateBody):
    """A certificate, including its PEM text."""

    refusal: RefusalState | None = Field(
        description=f"{REFUSAL} Null also if the certificate has expired, or the cluster was removed."
    )
    expected_by: Time | None = Field(description=EXPECTED_BY)
    ends_by: str | None = Field(
        description="The control that ends the access first, as in the access report. Null if the certificate has"
        " expired, or the cluster was removed."
    )
    refuses: RefusedRequests | None = Field(
        description=f"{REFUSES} Here for this certificate. Null if `ends_by` is null."
    )
    within_seconds: int | None = Field(description=WITHIN_SECONDS)
    revocations: list[CoveringRevocationBody] = Field(
        description="The revocations in force that cover the certificate, newest first. While one of them is left, the"
        " certificate stays revoked."
    )

    credential_id: str = Field(
        description="The credential's name in audit logs of API servers: `X509SHA256=` and the fingerprint, or `JTI=`"
        " and the id of the token."
    )
    account: str | None = Field(
        description="The token's service account in the namespace clustercert-users. Null for a certificate."
    )
    pem: str | None = Field(description="Null for a token, which is not stored.")


class CertificateListBody(BaseModel):
    """A page of certificates, newest first."""

    certificates: list[CertificateBody]
    next: str | None = Field(
        description="The cursor of the next page; null on the last page. A page scans at most 2000 certificates, so"
        " a filtered page may be short or empty even if there is a next page."
    )


COLUMNS = tuple(CertificateBody.model_fields)
"""The columns of CSV lists."""


def _fields(
    certificate: CertificateView,
    names: PlaceNames,
    users: Mapping[str, KnownUser],
    ca_states: Mapping[str, CaState],
    now: datetime,
) -> JsonObject:
    """Return the fields of `CertificateBody` that depend on the time, or on other objects."""
    return {
        "state": certificate.state(now),
        "cluster_name": names.clusters.get(certificate.cluster_id),
        "project_name": names.projects.get(certificate.project_id),
        "project_domain": names.domains.get(certificate.project_id),
        "user_domain": user.domain if (user := users.get(certificate.user_id)) is not None else None,
        "revoked_by_name": name_of(certificate.revoked_by, users),
        "client_ca_state": ca_states.get(certificate.ca_id),
    }


CSV = "text/csv"
NEXT = "X-Clustercert-Next"

_LISTED = described(
    "A page of certificates, newest first. In CSV, lists are JSON, and a cell that looks like a"
    " formula starts with an apostrophe.",
    CertificateListBody,
    content={CSV: openapi.TEXT},
    headers={NEXT: "The same as `next` in JSON; absent on the last page."},
)
_SHOWN = described(
    "The certificate and its state.",
    WholeCertificateBody,
    errors=ERRORS | {409: "Two certificates have this serial."},
)

router = APIRouter(tags=["Inventory"])


@router.get(IN_PROJECT + "/certificates", responses=_LISTED)
async def list_of_project(
    call: CallDep, project_id: str, page: PageDep, filters: FilterDep, parameters: ListDep
) -> Response:
    """List the certificates of a project.

    Project admins, operators and auditors see all certificates; other users see only their own. Includes certificates
    for removed clusters.
    """
    found = await call.services.inventory.certificates_of_project(
        call.caller,
        project_id,
        filters,
        limit=page.limit,
        before=page.cursor,
        own=parameters.own is not None,
    )
    return await _list(call, found, parameters.format)


@router.get(IN_CLUSTER + "/certificates", responses=_LISTED)
async def list_of_cluster(
    call: CallDep,
    project_id: str,
    cluster_id: str,
    page: PageDep,
    filters: ClusterFilterDep,
    parameters: ListDep,
) -> Response:
    """List the certificates of a cluster.

    Project admins, operators and auditors see all certificates; other users see only their own.
    """
    found = await call.services.inventory.certificates_of_project(
        call.caller,
        project_id,
        filters,
        cluster_id=cluster_id,
        limit=page.limit,
        before=page.cursor,
        own=parameters.own is not None,
    )
    return await _list(call, found, parameters.format)


@router.get(OWN + "/certificates", responses=_LISTED)
async def list_everywhere(call: CallDep, page: PageDep, filters: FilterDep, parameters: ListDep) -> Response:
    """List certificates of all projects.

    Operators and auditors see all certificates, and admins of projects the certificates of these projects. Other
    callers must send own=true, and see only their own certificates, including certificates in projects where they no
    longer have a role.
    """
    found = await call.services.inventory.certificates_of_all_projects(
        call.caller,
        filters,
        limit=page.limit,
        before=page.cursor,
        own=parameters.own is not None,
    )
    return await _list(call, found, parameters.format)


@router.get(IN_CLUSTER + "/certificates/{certificate}", responses=_SHOWN)
async def show_of_cluster(call: CallDep, project_id: str, cluster_id: str, certificate: str) -> Response:
    """Show a certificate of a cluster.

    Send the certificate's fingerprint (complete, or at least the first 8 digits), credential number, or serial in
    hex, or its credential id of an audit log, such as `JTI=` and the id of a token. Project admins, operators and
    auditors see any certificate; other users see only their own.
    """
    inventory = call.services.inventory
    return await _show(call, await inventory.show(call.caller, project_id, cluster_id, _name(certificate)))


@router.get(IN_PROJECT + "/certificates/{certificate}", responses=_SHOWN)
async def show_of_project(call: CallDep, project_id: str, certificate: str) -> Response:
    """Show a certificate of a project, even if its cluster was removed.

    Send the certificate's fingerprint (complete, or at least the first 8 digits), credential number, or serial in
    hex, or its credential id of an audit log, such as `JTI=` and the id of a token. Project admins, operators and
    auditors see any certificate; other users see only their own.
    """
    inventory = call.services.inventory
    return await _show(call, await inventory.show_in_project(call.caller, project_id, _name(certificate)))


@router.get(OWN + "/certificates/{certificate}", responses=_SHOWN)
async def show_anywhere(call: CallDep, certificate: str) -> Response:
    """Show a certificate of any project.

    Send the certificate's fingerprint (complete, or at least the first 8 digits), credential number, or serial in
    hex, or its credential id of an audit log, such as `JTI=` and the id of a token. Operators and auditors see any
    certificate, project admins see the certificates of their project, and other users see only their own.
    """
    inventory = call.services.inventory
    return await _show(call, await inventory.show_in_any_project(call.caller, _name(certificate)))


async def known_users(call: Call, ids: Iterable[str | None]) -> Mapping[str, KnownUser]:
    """Return users by id. Omits users whom the service does not know."""
    return await call.services.revocation.previews.users.find_by_ids({each for each in ids if each})


def name_of(actor: str | None, users: Mapping[str, KnownUser]) -> str | None:
    """Return the name of an actor with the domain, or None if the actor is not a known user."""
    user = users.get(actor) if actor is not None else None
    return None if user is None else user.shown_name


async def _list(call: Call, page: Page, format_: Literal["json", "csv"] | None) -> Response:
    inventory = call.services.inventory
    now, names = inventory.now(), await inventory.names(page.items)
    users = await known_users(
        call, (actor for each in page.items for actor in (each.user_id, each.revoked_by))
    )
    ca_states = await inventory.ca_states(page.items)
    rows = fitting(
        page.items,
        lambda each: CertificateBody.render(each, **_fields(each, names, users, ca_states, now)),
        call.services.options.page_bytes,
    )
    following = page.next if len(rows) == len(page.items) else page.items[len(rows) - 1].id
    headers = {**responses.NO_STORE, "Vary": "Accept"}
    if following is not None:
        headers[NEXT] = str(following)
    if format_ == "csv" or (format_ is None and prefers(call.request, (CSV,))):
        return Response(csv_text(rows, COLUMNS), headers=headers, media_type=CSV)
    return responses.json_response(page_body("certificates", rows, following), headers=headers)


async def _show(call: Call, certificate: CertificateView) -> Response:
    inventory = call.services.inventory
    names = await inventory.names([certificate])
    users = await known_users(call, [certificate.user_id, certificate.revoked_by])
    ca_states = await inventory.ca_states([certificate])
    fields = _fields(certificate, names, users, ca_states, inventory.now())
    pem = account = None
    if certificate.kind == "token":
        account = account_name(certificate.user_name, certificate.credential_number)
    else:
        pem = chain_pem((x509.load_der_x509_certificate(certificate.der),)).decode()
    end = await inventory.end_of(certificate)
    ends = {name: getattr(end, name, None) for name in ("refusal", "expected_by", "ends_by")}
    enforcement = end.enforcement if end is not None else None
    ends |= {name: getattr(enforcement, name, None) for name in ("refuses", "within_seconds")}
    revocations = await _covering(call, certificate)
    body = WholeCertificateBody.render(
        certificate, **fields, **ends, revocations=revocations, account=account, pem=pem
    )
    return responses.private(body)


async def _covering(call: Call, certificate: CertificateView) -> list[JsonObject]:
    recorder = call.services.revocation.recorder
    found = await recorder.queries.revocations_covering(certificate)
    users = await known_users(call, (each.by for each in found))
    return [
        CoveringRevocationBody.render(
            each,
            covers=_scope(each),
            by_name=name_of(each.by, users),
            can_be_undone=recorder.can_undo(each)
            and not (certificate.kind == "token" and each.fingerprint is not None),
        )
        for each in found
    ]


def _scope(revocation: Revocation) -> RevocationScope:
    if revocation.fingerprint is not None:
        return "certificate"
    if revocation.user_id:
        return "user_in_cluster" if revocation.cluster_id else "user"
    return "cluster"


def _name(text: str) -> str:
    """Normalize a fingerprint (or its first digits), credential number or serial. Raises NotFound for other text."""
    name = certificate_name(text, abbreviated=True)
    if name is None:
        raise NotFound("There is no such certificate. Check its fingerprint, credential number or serial.")
    return name


# Source: RFC 2585, section 4.2. PEM has no registered media type; this type is common.
DER = "application/pkix-crl"
PEM = "application/x-pem-file"

# A CRL is valid for a day, but caches must fetch it again soon: an old copy may lack new revocations.
_CACHED = {"Cache-Control": "public, max-age=10", "Vary": "Accept"}


@router.get(
    "/clustercert/v1/clusters/{cluster_id}/client-cas/{ca_id}/crl",
    responses=openapi.described(
        "A complete CRL (RFC 5280, version 2) in DER, or in PEM if Accept lists it.",
        content={DER: openapi.BINARY, PEM: openapi.TEXT},
        errors={status: openapi.ERRORS[status] for status in (404, 429, 500, 503)},
    ),
    response_class=Response,
)
async def show_crl(request: Request, cluster_id: str, ca_id: str, services: ServicesDep) -> Response:
    """Show the certificate revocation list of a client CA.

    The list contains all revoked, unexpired certificates of the CA. Needs no authentication.

    kube-apiserver does not read CRLs. The list is for other services that verify certificates of this CA.
    """
    # Check the ids here, because PostgreSQL rejects strings with a NUL character.
    if not (cluster_id.isprintable() and ca_id.isprintable()):
        raise NotFound("There is no such client CA. Check the ids of the cluster and the CA.")
    crl = await services.crls.crl(cluster_id, ca_id)
    if PEM in ",".join(request.headers.getlist("accept")).lower():
        return Response(crl_pem(crl.der), headers=_CACHED, media_type=PEM)
    return Response(crl.der, headers=_CACHED, media_type=DER)
