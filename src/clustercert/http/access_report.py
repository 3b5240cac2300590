"""The route of the access report: who has access to a cluster."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import AliasPath, BeforeValidator, Field
from starlette.responses import Response

from clustercert.certificates.access import AccessReport, CertificateAccess
from clustercert.certificates.credential_end import RefusedRequests
from clustercert.http import IN_CLUSTER, query, responses
from clustercert.http.certificates import (
    ACTOR_NAME,
    EXPECTED_BY,
    REFUSAL,
    REFUSED_AT,
    REFUSES,
    USED_AFTER_REVOCATION,
    WITHIN_SECONDS,
    known_users,
    name_of,
)
from clustercert.http.dependencies import Call, CallDep
from clustercert.http.fleet import CALLED_AT, ENFORCEMENT
from clustercert.http.openapi import described
from clustercert.http.paging import PageDep
from clustercert.http.responses import Hex, ResponseBody, Time
from clustercert.model.choices import CredentialKind, EnforcementState, RefusalState

router = APIRouter(tags=["Inventory"])


class CredentialBody(ResponseBody):
    """An unexpired certificate or token in the access report."""

    kind: CredentialKind = Field(validation_alias=AliasPath("certificate", "kind"))
    fingerprint: Hex = Field(validation_alias=AliasPath("certificate", "fingerprint"))
    serial: str = Field(validation_alias=AliasPath("certificate", "serial"))
    credential_number: str = Field(validation_alias=AliasPath("certificate", "credential_number"))
    state: Literal["live", "revoked"] = Field(validation_alias=AliasPath("end", "state"))
    has_access: bool = Field(
        validation_alias=AliasPath("end", "has_access"),
        description="Whether the certificate gives access, as far as this service knows. A revoked certificate"
        " still gives access if no control stops it, or if an API server allowed its use within the last day.",
    )
    used_after_revocation_at: Time | None = Field(
        validation_alias=AliasPath("end", "used_after_revocation_at"),
        description=USED_AFTER_REVOCATION,
    )
    refusal: RefusalState | None = Field(
        validation_alias=AliasPath("end", "refusal"),
        description=REFUSAL,
    )
    refused_at: Time | None = Field(validation_alias=AliasPath("end", "refused_at"), description=REFUSED_AT)
    expected_by: Time | None = Field(
        validation_alias=AliasPath("end", "expected_by"),
        description=EXPECTED_BY,
    )
    groups: list[str] = Field(
        description="The certificate's groups without the credential group, plus system:authenticated. For a"
        " token, the groups whose roles the token has in the cluster."
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
    revoked_at: Time | None = Field(validation_alias=AliasPath("end", "revoked_at"))
    revoked_by: str | None = Field(validation_alias=AliasPath("end", "revoked_by"))
    revoked_by_name: str | None = Field(description=ACTOR_NAME)
    first_seen_at: Time | None = Field(validation_alias=AliasPath("certificate", "first_seen_at"))
    last_seen_at: Time | None = Field(validation_alias=AliasPath("certificate", "last_seen_at"))
    stopped_by: list[str] = Field(
        validation_alias=AliasPath("end", "stopped_by"),
        description="Names of the controls that stop the certificate, fastest first.",
    )
    ends_by: str = Field(
        validation_alias=AliasPath("end", "ends_by"),
        description="The control that ends the access first: `ca` if the cluster has fast controls but none of"
        " them stops this certificate, and `expiry` if the cluster has no fast controls.",
    )
    refuses: RefusedRequests = Field(
        validation_alias=AliasPath("end", "enforcement", "refuses"), description=REFUSES
    )
    within_seconds: int | None = Field(
        validation_alias=AliasPath("end", "enforcement", "within_seconds"), description=WITHIN_SECONDS
    )


class UsedCredentialBody(CredentialBody):
    """A certificate that was used after its revocation, and its user."""

    user_id: str = Field(validation_alias=AliasPath("certificate", "user_id"))
    user_name: str = Field(validation_alias=AliasPath("certificate", "user_name"))


class UserAccessBody(ResponseBody):
    """A user and their unexpired certificates, latest expiry first."""

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
        description="The 10 certificates that expire last; 1,000 with the parameter `user`."
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
        description="False if the webhook denies requests with these certificates, because of a credential group"
        " or the mode known-only."
    )
    hashes: int = Field(
        validation_alias=AliasPath("identity", "hashes"),
        description="How many different certificates, or encodings of certificates, were seen.",
    )
    username: str = Field(validation_alias=AliasPath("identity", "username"))
    groups: list[str] = Field(validation_alias=AliasPath("identity", "groups"))
    first_seen_at: Time = Field(validation_alias=AliasPath("identity", "first_seen_at"))
    last_seen_at: Time = Field(validation_alias=AliasPath("identity", "last_seen_at"))


class ControlBody(ResponseBody):
    """A control: a mechanism that can stop the cluster from accepting a certificate."""

    name: str
    set_up: bool = Field(
        description="Whether this service is configured to use the control. For the webhook, the API server"
        " must also have called the webhook within the last day, and about every known use. `clustercert kubernetes"
        " verify` tests that the control works."
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
        description="False if a user on this page has more certificates than are listed, or if only the"
        " 100,000 certificates that expire last are counted."
    )
    totals: AccessTotalsBody
    verifications: int = Field(
        validation_alias=AliasPath("totals", "verifications"),
        description="How many certificates used to verify clusters and client CAs were left out. Certificates"
        " that were used after their revocation are never left out.",
    )
    users: list[UserAccessBody] = Field(description="A page of users, sorted by name and id.")
    next: Annotated[str | None, BeforeValidator(_cursor)] = Field(
        description="The cursor of the next page of users; null on the last page."
    )
    groups: list[GroupAccessBody] = Field(
        description="The groups in certificates that give access: the 500 groups with the most certificates."
    )
    used_after_revocation: list[UsedCredentialBody] = Field(
        description="Certificates that were used after their revocation, latest use first; at most 100. The filters"
        " `group` and `search` do not apply."
    )
    unknown_credentials: list[UnknownBody] = Field(validation_alias="unknown")
    enforced_by: list[str] = Field(
        validation_alias=AliasPath("enforcement", "enforced_by"),
        description="The fast controls that are set up in the cluster.",
    )
    refuses: RefusedRequests = Field(
        validation_alias=AliasPath("enforcement", "refuses"), description=REFUSES
    )
    enforcement: EnforcementState = Field(
        validation_alias=AliasPath("enforcement", "state"), description=ENFORCEMENT
    )
    webhook_called_at: Time | None = Field(
        validation_alias=AliasPath("enforcement", "asked_at"), description=CALLED_AT
    )
    controls: list[ControlBody]
    use_not_seen: str | None = Field(
        description="Why this service does not see the use of a revoked certificate; null if the API server sent audit"
        " events within the last day."
    )
    residual_risks: list[str] = Field(description="Access that can continue after a certificate is stopped.")


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
        Query(description="`true`: include the certificates used to verify clusters and client CAs."),
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
    return responses.private(AccessBody.render(await _with_names(call, report)))


async def _with_names(call: Call, report: AccessReport) -> AccessReport:
    """Add the domains of the users, and the names of the users who revoked certificates."""
    credentials = [each for user in report.users for each in user.credentials] + list(
        report.used_after_revocation
    )
    names = await known_users(
        call,
        [
            *(each.totals.user_id for each in report.users),
            *(each.certificate.revoked_by for each in credentials),
        ],
    )

    def named(credential: CertificateAccess) -> CertificateAccess:
        return replace(credential, revoked_by_name=name_of(credential.certificate.revoked_by, names))

    users = tuple(
        replace(
            each,
            user_domain=user.domain if (user := names.get(each.totals.user_id)) is not None else None,
            credentials=tuple(map(named, each.credentials)),
        )
        for each in report.users
    )
    return replace(report, users=users, used_after_revocation=tuple(map(named, report.used_after_revocation)))
