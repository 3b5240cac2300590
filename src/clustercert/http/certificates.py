"""Routes of issued certificates: lists, access to clusters, reachable clusters, and revocation lists."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, get_args

from cryptography import x509
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import QueryParams
from starlette.responses import Response

from clustercert.certificates.access import AccessReport, CertificateAccess, UnknownAccess, UserAccess
from clustercert.certificates.list import csv_text
from clustercert.certificates.recorder import certificate_name
from clustercert.http import IN_CLUSTER, IN_PROJECT, OWN, openapi, query, responses
from clustercert.http.dependencies import Call, CallDep, ServicesDep
from clustercert.http.openapi import ERRORS, described
from clustercert.http.paging import KeyPageDep, PageDep, fitting, numbered_page, page_body
from clustercert.http.responses import prefers
from clustercert.model import Cluster, JsonObject, KeyOrigin, Project, rfc3339
from clustercert.model.choices import CertificateState
from clustercert.model.errors import NotFound
from clustercert.pki.certificates import chain_pem
from clustercert.pki.crl import crl_pem
from clustercert.policy.rules import operates
from clustercert.store.certificates import CertificateFilter, CertificateView, Page, PlaceNames

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


class GroupAccessBody(BaseModel):
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
    groups: list[GroupAccessBody]
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


COLUMNS = tuple(CertificateBody.model_fields)
"""The columns of CSV lists."""


def certificate_row(certificate: CertificateView, names: PlaceNames, now: datetime) -> JsonObject:
    """Return the JSON object of a certificate. Times are RFC 3339 strings; unknown values are None."""
    return _row(
        CertificateBody,
        certificate,
        state=certificate.state(now),
        client_ca_id=certificate.ca_id,
        cluster_name=names.clusters.get(certificate.cluster_id),
        project_name=names.projects.get(certificate.project_id),
    )


def whole_certificate_row(certificate: CertificateView, names: PlaceNames, now: datetime) -> JsonObject:
    """Return the JSON object of a certificate, including its PEM."""
    pem = chain_pem((x509.load_der_x509_certificate(certificate.der),)).decode()
    return {**certificate_row(certificate, names, now), "pem": pem}


def report_row(report: AccessReport) -> JsonObject:
    """Return the JSON object of an access report."""
    return _row(
        AccessBody,
        report,
        cluster_id=report.cluster.id,
        cluster_name=report.cluster.name,
        users=[_user(each) for each in report.users],
        groups=[_row(GroupAccessBody, each) for each in report.groups],
        unknown_credentials=[_unknown(each) for each in report.unknown],
        controls=[_row(ControlBody, each) for each in report.controls],
    )


def _user(user: UserAccess) -> JsonObject:
    return _row(UserAccessBody, user, credentials=[_credential(each) for each in user.credentials])


def _credential(access: CertificateAccess) -> JsonObject:
    return _row(
        CredentialBody,
        access.certificate,
        state=access.state,
        has_access=access.has_access,
        groups=list(access.groups),
        cluster_role=access.cluster_role,
        stopped_by=list(access.stopped_by),
    )


def _unknown(access: UnknownAccess) -> JsonObject:
    newest = next(reversed(access.identity.fingerprints), None)
    return _row(UnknownBody, access.identity, fingerprint=newest, has_access=access.has_access)


def _row(body: type[BaseModel], source: object, **derived: object) -> JsonObject:
    """Return the JSON object with the body's fields: from `derived`, or else from the source's attributes."""
    return {
        name: derived[name] if name in derived else _plain(getattr(source, name))
        for name in body.model_fields
    }


def _plain(value: object) -> object:
    convert = _CONVERSIONS.get(type(value))
    return convert(value) if convert else value


_CONVERSIONS: Mapping[type, Callable[[Any], object]] = {bytes: bytes.hex, tuple: list, datetime: rfc3339}


CSV = "text/csv"
NEXT = "X-Clustercert-Next"

_CLUSTER_FILTERS = query.described(CLUSTER_FILTERS)
_PROJECT_FILTERS = query.described(PROJECT_FILTERS)
_LISTED = described(
    "A page of certificates, newest first. In CSV, lists are JSON, and a cell that looks like a"
    " formula starts with an apostrophe.",
    CertificateListBody,
    content={CSV: openapi.TEXT},
    headers={NEXT: "The same as `next`; absent on the last page."},
)
_SHOWN = described(
    "The certificate and its state.",
    WholeCertificateBody,
    errors=ERRORS | {409: "Two certificates have this serial."},
)

router = APIRouter(tags=["Inventory"])


@router.get(IN_PROJECT + "/certificates", responses=_LISTED, openapi_extra=_PROJECT_FILTERS)
async def list_of_project(call: CallDep, project_id: str, page: PageDep) -> Response:
    """List the certificates of a project.

    Project admins and operators see all, other users their own. Includes certificates for removed clusters.
    """
    selected, own = certificate_filter(call.request.query_params, PROJECT_FILTERS)
    found = await call.services.inventory.certificates_of_project(
        call.caller, project_id, selected, limit=page.limit, before=page.cursor, own=own
    )
    return await _list(call, found)


@router.get(IN_CLUSTER + "/certificates", responses=_LISTED, openapi_extra=_CLUSTER_FILTERS)
async def list_of_cluster(call: CallDep, project_id: str, cluster_id: str, page: PageDep) -> Response:
    """List the certificates of a cluster. Project admins and operators see all, other users their own."""
    selected, own = certificate_filter(call.request.query_params, CLUSTER_FILTERS)
    found = await call.services.inventory.certificates_of_project(
        call.caller,
        project_id,
        selected,
        cluster_id=cluster_id,
        limit=page.limit,
        before=page.cursor,
        own=own,
    )
    return await _list(call, found)


@router.get(OWN + "/certificates", responses=_LISTED, openapi_extra=_PROJECT_FILTERS)
async def list_everywhere(call: CallDep, page: PageDep) -> Response:
    """List certificates of all projects.

    Operators see all. Others send own=true, and see their own, also those in projects where they have no role any more.
    """
    selected, own = certificate_filter(call.request.query_params, PROJECT_FILTERS)
    found = await call.services.inventory.certificates_of_all_projects(
        call.caller, selected, limit=page.limit, before=page.cursor, own=own
    )
    return await _list(call, found)


@router.get(IN_CLUSTER + "/certificates/{certificate}", responses=_SHOWN)
async def show_of_cluster(call: CallDep, project_id: str, cluster_id: str, certificate: str) -> Response:
    """Show a certificate of a cluster.

    Send its fingerprint or at least its first 8 digits, its credential number, or its serial in hex. Users see their
    own, project admins and operators any.
    """
    inventory = call.services.inventory
    return await _show(call, await inventory.show(call.caller, project_id, cluster_id, _name(certificate)))


@router.get(IN_PROJECT + "/certificates/{certificate}", responses=_SHOWN)
async def show_of_project(call: CallDep, project_id: str, certificate: str) -> Response:
    """Show a certificate of a project, also one for a removed cluster.

    Named as in a cluster. Users see their own, project admins and operators any.
    """
    inventory = call.services.inventory
    return await _show(call, await inventory.show_in_project(call.caller, project_id, _name(certificate)))


@router.get(OWN + "/certificates/{certificate}", responses=_SHOWN)
async def show_anywhere(call: CallDep, certificate: str) -> Response:
    """Show a certificate of any project.

    Named as in a cluster. Users see their own, project admins those of their project, operators any.
    """
    inventory = call.services.inventory
    return await _show(call, await inventory.show_in_any_project(call.caller, _name(certificate)))


@router.get(IN_CLUSTER + "/access", responses=described("The access report.", AccessBody))
async def show_access(
    call: CallDep,
    project_id: str,
    cluster_id: str,
    user: Annotated[str | None, Query(description="Only this user, by id.")] = None,
    group: Annotated[str | None, Query(description="Only members of this Kubernetes group.")] = None,
) -> Response:
    """Show who has access to a cluster.

    Lists the unexpired certificates, and the controls that can stop their use. Only for project admins and operators.
    """
    report = await call.services.inventory.access_report(
        call.caller,
        project_id,
        cluster_id,
        user_id=query.plain_text("user", user) if user is not None else None,
        group=query.plain_text("group", group) if group is not None else None,
    )
    return responses.private(report_row(report))


async def _list(call: Call, page: Page) -> Response:
    inventory = call.services.inventory
    now, names = inventory.now(), await inventory.names(page.items)
    rows = fitting(
        page.items, lambda each: certificate_row(each, names, now), call.services.options.page_bytes
    )
    following = page.next if len(rows) == len(page.items) else page.items[len(rows) - 1].id
    headers = {**responses.NO_STORE, "Vary": "Accept"}
    if following is not None:
        headers[NEXT] = str(following)
    sent = call.request.query_params.get("format")
    if sent == "csv" or (sent is None and prefers(call.request, (CSV,))):
        return Response(csv_text(rows, COLUMNS), headers=headers, media_type=CSV)
    return responses.json_response(page_body("certificates", rows, following), headers=headers)


async def _show(call: Call, certificate: CertificateView) -> Response:
    inventory = call.services.inventory
    names = await inventory.names([certificate])
    return responses.private(whole_certificate_row(certificate, names, inventory.now()))


def _name(text: str) -> str:
    """Normalize a fingerprint, or its first digits, credential number or serial. Raises NotFound for others."""
    name = certificate_name(text, abbreviated=True)
    if name is None:
        raise NotFound("There is no such certificate. Check its fingerprint, credential number or serial.")
    return name


class ReachableClusterBody(BaseModel):
    """A cluster that the caller can reach. Times are RFC 3339."""

    id: str
    name: str
    project: str
    project_id: str
    domain: str = Field(description="The project's domain.")
    domain_id: str
    version: str
    internal_url: str
    external_url: str | None
    labels: dict[str, str]
    client_ca_id: str
    created_at: str
    updated_at: str


class ReachableClusterListBody(BaseModel):
    """A page of clusters, sorted by id."""

    clusters: list[ReachableClusterBody]
    next: str | None = Field(description="The cursor of the next page; null on the last page.")


@router.get(OWN + "/clusters", responses=described("The clusters.", ReachableClusterListBody))
async def list_reachable(
    call: CallDep,
    page: KeyPageDep,
    name: Annotated[str | None, Query(description="Only clusters with this name or id.")] = None,
) -> Response:
    """List the clusters in all projects in which the user has a role, whatever the token's scope.

    Operators see the clusters of all projects. Sorted by id.
    """
    wanted = query.plain_text("name", name) if name is not None else None
    identity, queries = call.services.identity, call.services.clusters.queries
    projects = None
    if not operates(call.caller):
        own = await identity.projects_of(call.caller)
        projects = {each.id: each for each in own if each.enabled and each.domain.enabled}
    found = await queries.reachable_page(projects, wanted, page.after, page.limit + 1)
    if projects is None:
        owners = await identity.directory.projects_with_ids({each.project_id for each in found})
        projects = {each.id: each for each in owners}
    shown = found[: page.limit]
    # A project that was deleted meanwhile has no clusters.
    known = [each for each in shown if each.project_id in projects]
    following = shown[-1].id if len(found) > page.limit else None
    return responses.private(
        numbered_page(
            "clusters",
            known,
            lambda each: _reachable_view(each, projects[each.project_id]),
            lambda each: each.id,
            following,
            page.max_bytes,
        )
    )


def _reachable_view(cluster: Cluster, project: Project) -> JsonObject:
    return {
        "id": cluster.id,
        "name": cluster.name,
        "project": project.name,
        "project_id": project.id,
        "domain": project.domain.name,
        "domain_id": project.domain.id,
        "version": cluster.version,
        "internal_url": cluster.internal_url,
        "external_url": cluster.external_url,
        "labels": dict(sorted(cluster.labels.items())),
        "client_ca_id": cluster.client_ca.id,
        "created_at": rfc3339(cluster.created_at),
        "updated_at": rfc3339(cluster.updated_at),
    }


# Source: RFC 2585, 4.2. PEM has no registered media type; this one is common.
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

    Lists all revoked, unexpired certificates. Needs no authentication.

    kube-apiserver does not read CRLs. They are for other services that verify the same certificates.
    """
    # Check the ids here, because PostgreSQL rejects strings with a NUL character.
    if not (cluster_id.isprintable() and ca_id.isprintable()):
        raise NotFound("There is no such client CA. Check the ids of the cluster and the CA.")
    crl = await services.crls.crl(cluster_id, ca_id)
    if PEM in ",".join(request.headers.getlist("accept")).lower():
        return Response(crl_pem(crl.der), headers=_CACHED, media_type=PEM)
    return Response(crl.der, headers=_CACHED, media_type=DER)
