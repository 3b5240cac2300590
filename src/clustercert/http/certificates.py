"""Routes about issued certificates: lists, access reports, reachable clusters, and revocation lists."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Literal

from cryptography import x509
from fastapi import APIRouter, Query, Request
from pydantic import AliasPath, BaseModel, BeforeValidator, ConfigDict, Field
from starlette.responses import Response

from clustercert.certificates.list import csv_text
from clustercert.certificates.recorder import certificate_name
from clustercert.http import IN_CLUSTER, IN_PROJECT, OWN, openapi, query, responses
from clustercert.http.dependencies import Call, CallDep, ServicesDep
from clustercert.http.openapi import ERRORS, described
from clustercert.http.paging import KeyPageDep, PageBody, PageDep, fitting, keyset_page, page_body
from clustercert.http.responses import Hex, ResponseBody, SortedStrings, Time, prefers
from clustercert.model import Cluster, Grant, JsonObject, KeyOrigin
from clustercert.model.choices import CaState, CertificateState
from clustercert.model.errors import NotFound
from clustercert.pki.certificates import chain_pem
from clustercert.pki.client_ca import ca_subject
from clustercert.pki.crl import crl_pem
from clustercert.policy.lifetime import BACKDATE
from clustercert.policy.rules import reads_everything
from clustercert.store.certificates import CertificateFilter, CertificateView, Page, PlaceNames


class ClusterCertificateFilters(BaseModel):
    """The query parameters that filter the certificates of a cluster."""

    own: Literal["true"] | None = Field(default=None, description="Only the caller's own certificates.")
    user: query.Text | None = Field(default=None, description="Only certificates of this user, by id.")
    user_name: query.Text | None = Field(
        default=None,
        description="Only certificates of users with this name, DOMAIN/NAME or common name.",
    )
    state: CertificateState | None = Field(
        default=None, description="Only certificates in this state. `revoked` includes expired certificates."
    )
    expires_before: query.Time | None = Field(
        default=None, description="Only certificates that expire before this time, RFC 3339."
    )
    expires_after: query.Time | None = Field(
        default=None, description="Only certificates that expire at or after this time, RFC 3339."
    )
    seen_before: query.Time | None = Field(
        default=None,
        description="Only certificates whose use was last reported before this time, RFC 3339.",
    )
    seen_after: query.Time | None = Field(
        default=None,
        description="Only certificates whose use was last reported at or after this time, RFC 3339.",
    )
    key_origin: KeyOrigin | None = Field(default=None, description="Only certificates with this key origin.")
    never_seen: Literal["true"] | None = Field(
        default=None, description="Only certificates whose use has never been reported by an API server."
    )
    access_request: query.Text | None = Field(
        default=None, description="Only certificates of this access request, by id."
    )
    format: Literal["json", "csv"] | None = Field(
        default=None, description="The format of the response. By default, the header Accept decides."
    )

    def selected(self) -> CertificateFilter:
        """Return these query parameters as a filter for the store."""
        return CertificateFilter(
            user_id=self.user,
            user_name=self.user_name,
            state=self.state,
            expires_before=self.expires_before,
            expires_after=self.expires_after,
            key_origin=self.key_origin,
            seen_before=self.seen_before,
            seen_after=self.seen_after,
            never_seen=self.never_seen is not None,
            access_request_id=self.access_request,
        )


class CertificateFilters(ClusterCertificateFilters):
    """The query parameters that filter the certificates of all clusters."""

    cluster: query.Text | None = Field(default=None, description="Only certificates for this cluster, by id.")

    def selected(self) -> CertificateFilter:
        """Return these query parameters as a filter for the store."""
        return replace(super().selected(), cluster_id=self.cluster)


_USED_AFTER_REVOCATION = (
    "When an API server last allowed a request with the certificate after its revocation; updated at most once an"
    " hour."
)


class CertificateBody(ResponseBody):
    """An issued certificate. Times are in the format of RFC 3339; unknown or absent values are null."""

    model_config = ConfigDict(extra="allow")

    fingerprint: Hex = Field(
        description="SHA-256 of the DER, lower-case hex. kube-apiserver calls it X509SHA256."
    )
    serial: str = Field(description="Lower-case hex.")
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
    key_type: str
    key_origin: KeyOrigin
    auth_method: str
    source_address: str
    request_id: str
    reason: str | None
    issued_at: Time
    revoked_at: Time | None
    revoked_by: str | None
    revocation_reason: str | None
    first_seen_at: Time | None
    last_seen_at: Time | None = Field(
        description="When an API server last reported a use of the certificate, to the minute."
    )
    altered_at: Time | None = Field(
        description="When an API server last reported an altered copy of the certificate; updated at most once an"
        " hour."
    )
    used_after_revocation_at: Time | None = Field(description=_USED_AFTER_REVOCATION)


class WholeCertificateBody(CertificateBody):
    """A certificate, including its PEM text."""

    pem: str


class CertificateListBody(BaseModel):
    """A page of certificates, newest first."""

    certificates: list[CertificateBody]
    next: str | None = Field(
        description="The cursor of the next page; null on the last page. A page scans at most 2000 certificates, so"
        " a filtered page may be short or empty even if there is a next page."
    )


class CredentialBody(ResponseBody):
    """An unexpired certificate in the access report."""

    fingerprint: Hex = Field(validation_alias=AliasPath("certificate", "fingerprint"))
    serial: str = Field(validation_alias=AliasPath("certificate", "serial"))
    credential_number: str = Field(validation_alias=AliasPath("certificate", "credential_number"))
    state: Literal["live", "revoked"]
    has_access: bool = Field(
        description="Whether the certificate gives access, as far as this service knows. A revoked certificate"
        " still gives access if no control stops it, or if an API server allowed its use within the last day."
    )
    used_after_revocation_at: Time | None = Field(
        validation_alias=AliasPath("certificate", "used_after_revocation_at"),
        description=_USED_AFTER_REVOCATION,
    )
    groups: list[str] = Field(
        description="The certificate's groups without the credential group, plus system:authenticated."
    )
    cluster_role: str | None = Field(
        description="The role bound to the credential group, if the certificate has no other group."
    )
    rule: str | None = Field(
        validation_alias=AliasPath("certificate", "rule"),
        description="The policy rule that allowed the certificate.",
    )
    access_request_id: str | None = Field(
        validation_alias=AliasPath("certificate", "access_request_id"),
        description="The access request that gives some of the groups; null without a request.",
    )
    not_after: Time = Field(validation_alias=AliasPath("certificate", "not_after"))
    revoked_at: Time | None = Field(validation_alias=AliasPath("certificate", "revoked_at"))
    revoked_by: str | None = Field(validation_alias=AliasPath("certificate", "revoked_by"))
    first_seen_at: Time | None = Field(validation_alias=AliasPath("certificate", "first_seen_at"))
    last_seen_at: Time | None = Field(validation_alias=AliasPath("certificate", "last_seen_at"))
    stopped_by: list[str] = Field(
        description="Names of the controls that stop the certificate, fastest first."
    )


class UsedCredentialBody(CredentialBody):
    """A certificate that was used after its revocation, and its user."""

    user_id: str = Field(validation_alias=AliasPath("certificate", "user_id"))
    user_name: str = Field(validation_alias=AliasPath("certificate", "user_name"))


class UserAccessBody(ResponseBody):
    """A user and their unexpired certificates, the longest-lived first."""

    user_id: str = Field(validation_alias=AliasPath("totals", "user_id"))
    user_name: str = Field(validation_alias=AliasPath("totals", "user_name"))
    user_domain: str | None = Field(
        description="The name of the user's domain or issuer. Null if unknown, such as for a deleted user."
    )
    groups: list[str] = Field(description="The groups in at least one of the certificates.")
    certificates: int = Field(
        validation_alias=AliasPath("totals", "certificates"),
        description="How many unexpired certificates the user has.",
    )
    with_access: int = Field(
        validation_alias=AliasPath("totals", "with_access"),
        description="How many of the certificates give access.",
    )
    until: Time | None = Field(
        validation_alias=AliasPath("totals", "until"),
        description="When the last certificate that gives access expires; null if none gives access.",
    )
    first_seen_at: Time | None = Field(validation_alias=AliasPath("totals", "first_seen_at"))
    last_seen_at: Time | None = Field(validation_alias=AliasPath("totals", "last_seen_at"))
    credentials: list[CredentialBody] = Field(
        description="The 10 longest-lived certificates; 1,000 with the parameter `user`."
    )


class AccessTotalsBody(ResponseBody):
    """Counts of unexpired certificates and their users, with the filters of the request."""

    certificates: int
    with_access: int = Field(description="How many of the certificates give access.")
    revoked: int = Field(description="How many of the certificates are revoked.")
    users: int
    users_with_access: int


class GroupAccessBody(ResponseBody):
    """A Kubernetes group, and how many users and certificates have access through it."""

    name: str
    users: int
    credentials: int
    last_seen_at: Time | None


def _cursor(row_id: int | None) -> str | None:
    return None if row_id is None else str(row_id)


def _newest(fingerprints: Sequence[str]) -> str | None:
    return fingerprints[-1] if fingerprints else None


class UnknownBody(ResponseBody):
    """A user name with groups, from client certificates that the API server saw but this service did not issue."""

    fingerprint: Annotated[str | None, BeforeValidator(_newest)] = Field(
        validation_alias=AliasPath("identity", "fingerprints"),
        description="The most recent certificate's fingerprint; null if unknown.",
    )
    has_access: bool = Field(
        description="False if the webhook denies requests with these certificates, because of a credential group or the"
        " mode known-only."
    )
    hashes: int = Field(
        validation_alias=AliasPath("identity", "hashes"),
        description="How many different certificates, or encodings of them, were seen.",
    )
    username: str = Field(validation_alias=AliasPath("identity", "username"))
    groups: list[str] = Field(validation_alias=AliasPath("identity", "groups"))
    first_seen_at: Time = Field(validation_alias=AliasPath("identity", "first_seen_at"))
    last_seen_at: Time = Field(validation_alias=AliasPath("identity", "last_seen_at"))


class ControlBody(ResponseBody):
    """A control: a mechanism that can stop the cluster from accepting a certificate."""

    name: str
    set_up: bool = Field(
        description="Whether this service is configured to use the control. For the webhook, the API server must also"
        " have called it within the last day. `clustercert kubernetes verify` tests that the control works."
    )
    lacking: str | None = Field(
        description="Missing parts of the control's set-up; null if no part is known to be missing."
    )
    within: str = Field(description="How soon a revocation takes effect with this control.")
    does_not_stop: str


class AccessBody(ResponseBody):
    """Who has access to a cluster."""

    cluster_id: str = Field(validation_alias=AliasPath("cluster", "id"))
    cluster_name: str = Field(validation_alias=AliasPath("cluster", "name"))
    at: Time
    complete: bool = Field(
        description="False if a user on this page has more certificates than are listed, or if only the 100,000"
        " longest-lived certificates are counted."
    )
    totals: AccessTotalsBody
    verifications: int = Field(
        validation_alias=AliasPath("totals", "verifications"),
        description="How many certificates that verify clusters and client CAs were left out. Certificates that were"
        " used after their revocation are never left out.",
    )
    users: list[UserAccessBody] = Field(description="A page of users, sorted by name and id.")
    next: Annotated[str | None, BeforeValidator(_cursor)] = Field(
        description="The cursor of the next page of users; null on the last page."
    )
    groups: list[GroupAccessBody] = Field(
        description="The groups in certificates that give access: the 500 groups with the most certificates."
    )
    used_after_revocation: list[UsedCredentialBody] = Field(
        description="Certificates that were used after their revocation, the last use first; at most 100. The filters"
        " `group` and `search` do not apply."
    )
    unknown_credentials: list[UnknownBody] = Field(validation_alias="unknown")
    controls: list[ControlBody]
    sees_use_after_revocation: bool = Field(
        description="Whether the API server sent audit events within the last day. Without audit events, this service"
        " does not see the use of a revoked certificate."
    )
    residual_risks: list[str] = Field(description="Access that can continue after a certificate is stopped.")


COLUMNS = tuple(CertificateBody.model_fields)
"""The columns of CSV lists."""


def _fields(
    certificate: CertificateView,
    names: PlaceNames,
    domains: Mapping[str, str],
    ca_states: Mapping[str, CaState],
    now: datetime,
) -> JsonObject:
    """Return the fields of `CertificateBody` that depend on the time, or on other objects."""
    return {
        "state": certificate.state(now),
        "cluster_name": names.clusters.get(certificate.cluster_id),
        "project_name": names.projects.get(certificate.project_id),
        "project_domain": names.domains.get(certificate.project_id),
        "user_domain": domains.get(certificate.user_id),
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
    call: CallDep, project_id: str, page: PageDep, filters: Annotated[CertificateFilters, Query()]
) -> Response:
    """List the certificates of a project.

    Project admins, operators and auditors see all certificates; other users see only their own. Includes certificates
    for removed clusters.
    """
    found = await call.services.inventory.certificates_of_project(
        call.caller,
        project_id,
        filters.selected(),
        limit=page.limit,
        before=page.cursor,
        own=filters.own is not None,
    )
    return await _list(call, found, filters.format)


@router.get(IN_CLUSTER + "/certificates", responses=_LISTED)
async def list_of_cluster(
    call: CallDep,
    project_id: str,
    cluster_id: str,
    page: PageDep,
    filters: Annotated[ClusterCertificateFilters, Query()],
) -> Response:
    """List the certificates of a cluster.

    Project admins, operators and auditors see all certificates; other users see only their own.
    """
    found = await call.services.inventory.certificates_of_project(
        call.caller,
        project_id,
        filters.selected(),
        cluster_id=cluster_id,
        limit=page.limit,
        before=page.cursor,
        own=filters.own is not None,
    )
    return await _list(call, found, filters.format)


@router.get(OWN + "/certificates", responses=_LISTED)
async def list_everywhere(
    call: CallDep, page: PageDep, filters: Annotated[CertificateFilters, Query()]
) -> Response:
    """List certificates of all projects.

    Operators and auditors see all certificates. Other callers must send own=true, and see only their own certificates,
    including certificates in projects where they no longer have a role.
    """
    found = await call.services.inventory.certificates_of_all_projects(
        call.caller,
        filters.selected(),
        limit=page.limit,
        before=page.cursor,
        own=filters.own is not None,
    )
    return await _list(call, found, filters.format)


@router.get(IN_CLUSTER + "/certificates/{certificate}", responses=_SHOWN)
async def show_of_cluster(call: CallDep, project_id: str, cluster_id: str, certificate: str) -> Response:
    """Show a certificate of a cluster.

    Send the certificate's fingerprint (complete, or at least the first 8 digits), credential number, or serial in hex.
    Project admins, operators and auditors see any certificate; other users see only their own.
    """
    inventory = call.services.inventory
    return await _show(call, await inventory.show(call.caller, project_id, cluster_id, _name(certificate)))


@router.get(IN_PROJECT + "/certificates/{certificate}", responses=_SHOWN)
async def show_of_project(call: CallDep, project_id: str, certificate: str) -> Response:
    """Show a certificate of a project, even if its cluster was removed.

    Send the certificate's fingerprint (complete, or at least the first 8 digits), credential number, or serial in hex.
    Project admins, operators and auditors see any certificate; other users see only their own.
    """
    inventory = call.services.inventory
    return await _show(call, await inventory.show_in_project(call.caller, project_id, _name(certificate)))


@router.get(OWN + "/certificates/{certificate}", responses=_SHOWN)
async def show_anywhere(call: CallDep, certificate: str) -> Response:
    """Show a certificate of any project.

    Send the certificate's fingerprint (complete, or at least the first 8 digits), credential number, or serial in hex.
    Operators and auditors see any certificate, project admins see the certificates of their project, and other users
    see only their own.
    """
    inventory = call.services.inventory
    return await _show(call, await inventory.show_in_any_project(call.caller, _name(certificate)))


@router.get(IN_CLUSTER + "/access", responses=described("The access report.", AccessBody))
async def show_access(
    call: CallDep,
    project_id: str,
    cluster_id: str,
    page: PageDep,
    user: Annotated[query.Text | None, Query(description="Only certificates of this user, by id.")] = None,
    group: Annotated[query.Text | None, Query(description="Only members of this Kubernetes group.")] = None,
    search: Annotated[
        query.Text | None,
        Query(description="Only users whose name, or one of whose groups, contains this text."),
    ] = None,
    verifications: Annotated[
        Literal["true"] | None,
        Query(description="`true`: include the certificates that verify clusters and client CAs."),
    ] = None,
) -> Response:
    """Show who has access to a cluster.

    Lists the users with unexpired certificates, and the controls that can stop the use of these certificates. A page
    has at most 100 users; the counts are for all users. Only for project admins, operators and auditors.
    """
    report = await call.services.inventory.access_report(
        call.caller,
        project_id,
        cluster_id,
        user_id=user,
        group=group,
        search=search,
        with_verifications=verifications is not None,
        after=page.cursor,
        limit=page.limit,
    )
    domains = await _user_domains(call, (each.totals.user_id for each in report.users))
    users = tuple(replace(each, user_domain=domains.get(each.totals.user_id)) for each in report.users)
    return responses.private(AccessBody.render(replace(report, users=users)))


async def _user_domains(call: Call, ids: Iterable[str]) -> Mapping[str, str]:
    """Return the names of the domains of users, by user id. Omits users whom the service does not know."""
    users = await call.services.revocation.previews.users.find_by_ids(set(ids))
    return {each.id: each.domain for each in users.values()}


async def _list(call: Call, page: Page, format_: Literal["json", "csv"] | None) -> Response:
    inventory = call.services.inventory
    now, names = inventory.now(), await inventory.names(page.items)
    domains = await _user_domains(call, (each.user_id for each in page.items))
    ca_states = await inventory.ca_states(page.items)
    rows = fitting(
        page.items,
        lambda each: CertificateBody.render(each, **_fields(each, names, domains, ca_states, now)),
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
    domains = await _user_domains(call, [certificate.user_id])
    ca_states = await inventory.ca_states([certificate])
    fields = _fields(certificate, names, domains, ca_states, inventory.now())
    pem = chain_pem((x509.load_der_x509_certificate(certificate.der),)).decode()
    return responses.private(WholeCertificateBody.render(certificate, **fields, pem=pem))


def _name(text: str) -> str:
    """Normalize a fingerprint (or its first digits), credential number or serial. Raises NotFound for other text."""
    name = certificate_name(text, abbreviated=True)
    if name is None:
        raise NotFound("There is no such certificate. Check its fingerprint, credential number or serial.")
    return name


def _key_identifier(ca: x509.Certificate) -> bytes:
    return ca_subject(ca).key_identifier


class ReachableClusterBody(ResponseBody):
    """A cluster that the caller can reach. Times are in the format of RFC 3339."""

    id: str
    name: str
    project: str = Field(validation_alias=AliasPath("project_name", "name"))
    project_id: str
    domain: str = Field(
        validation_alias=AliasPath("project_name", "domain", "name"), description="The project's domain."
    )
    domain_id: str = Field(validation_alias=AliasPath("project_name", "domain", "id"))
    version: str
    internal_url: str
    external_url: str | None
    server_ca: str = Field(
        validation_alias="server_ca_pem", description="The CA of the API server's certificate, PEM."
    )
    labels: SortedStrings
    groups: list[str] = Field(
        description="The Kubernetes groups that the caller would get now, with a CSR and without a reason."
        " Empty if the policy would refuse the certificate, or if the cluster gives each certificate its own"
        " group."
    )
    longest_lifetime_seconds: int | None = Field(
        description="The longest lifetime that the caller would get now; null if the policy would refuse the"
        " certificate."
    )
    requestable_groups: list[str] = Field(
        description="The Kubernetes groups that the caller can get with an access request."
    )
    client_ca_id: str = Field(validation_alias=AliasPath("client_ca", "id"))
    client_ca_key_id: Annotated[Hex, BeforeValidator(_key_identifier)] = Field(
        validation_alias=AliasPath("client_ca", "certificate"),
        description="The authority key identifier of the certificates that the cluster's client CA signs now,"
        " lower-case hex. A certificate with another one comes from a CA that is being replaced.",
    )
    created_at: Time
    updated_at: Time
    verified_at: Time | None = Field(
        description="When `clustercert kubernetes verify` last found no fault; null if it never did."
    )


class ReachableClusterListBody(PageBody):
    """A page of clusters."""

    clusters: list[ReachableClusterBody]


# The policy decides about each cluster in a page, so a page has fewer items than in other lists.
_MAX_REACHABLE = 100


@router.get(OWN + "/clusters", responses=described("The clusters.", ReachableClusterListBody))
async def list_reachable(
    call: CallDep,
    page: KeyPageDep,
    name: Annotated[query.Text | None, Query(description="Only clusters with this name or id.")] = None,
    search: Annotated[
        query.Text | None,
        Query(
            description="Only clusters with this text in their name or in their project's name, in any case."
        ),
    ] = None,
    own: Annotated[
        Literal["true"] | None, Query(description="Only clusters in projects in which the user has a role.")
    ] = None,
    order: Annotated[
        Literal["id", "name"] | None, Query(description="By what to sort; by default, by id.")
    ] = None,
) -> Response:
    """List the clusters in all projects in which the user has a role, whatever the token's scope.

    Operators and auditors see the clusters of all projects. A page has at most 100 clusters.
    """
    services, queries = call.services, call.services.clusters.queries
    page = replace(page, limit=min(page.limit, _MAX_REACHABLE))
    caller = await services.identity.with_all_roles(call.caller)
    projects = None if reads_everything(caller) and own is None else caller.roles.keys()

    async def read(*, after: str, limit: int) -> Sequence[Cluster]:
        return await queries.reachable_page(
            projects, name, after, limit, search=search, by_name=order == "name"
        )

    def view(cluster: Cluster) -> JsonObject:
        granted = services.explanations.grant_now(caller, cluster)
        return ReachableClusterBody.render(
            cluster,
            groups=granted.groups if granted is not None else (),
            longest_lifetime_seconds=_lifetime_seconds(granted) if granted is not None else None,
            requestable_groups=services.explanations.requestable_now(caller, cluster),
        )

    return responses.private(await keyset_page("clusters", read, view, page))


def _lifetime_seconds(grant: Grant) -> int:
    return int((grant.not_after - grant.not_before - BACKDATE).total_seconds())


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
