"""The route that lists the clusters which the caller can reach."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from cryptography import x509
from fastapi import APIRouter, Query
from pydantic import AliasPath, BeforeValidator, Field
from starlette.responses import Response

from clustercert.http import OWN, query, responses
from clustercert.http.dependencies import CallDep
from clustercert.http.openapi import described
from clustercert.http.paging import KeyPageDep, PageBody, keyset_page
from clustercert.http.responses import Hex, ResponseBody, SortedStrings, Time
from clustercert.model import Cluster, Grant, JsonObject
from clustercert.model.choices import CredentialKind
from clustercert.model.rights import reads_everything
from clustercert.pki.client_ca import ca_subject
from clustercert.policy.lifetime import BACKDATE

router = APIRouter(tags=["Inventory"])


def _key_identifier(ca: x509.Certificate | None) -> bytes | None:
    return None if ca is None else ca_subject(ca).key_identifier


def _is_given(problem: str | None) -> bool:
    return problem is not None


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
    credential: CredentialKind = Field(
        validation_alias="credential_kind",
        description="What users of the cluster get: certificates, or tokens of service accounts.",
    )
    issuing_stopped: Annotated[bool, BeforeValidator(_is_given)] = Field(
        validation_alias=AliasPath("client_ca", "problem"),
        description="Whether the cluster gets no new tokens now, because the last check of the cluster found a"
        " problem. Project admins and operators read the problem with the cluster's own route.",
    )
    groups: list[str] = Field(
        description="The Kubernetes groups that the caller would get now, with a CSR and without a reason."
        " Empty if the policy would refuse the credential, or if the cluster gives each certificate its own"
        " group. For a cluster whose credentials are tokens, only groups that have a role in the cluster."
    )
    longest_lifetime_seconds: int | None = Field(
        description="The longest lifetime that the caller would get now; null if the policy would refuse the"
        " credential."
    )
    requestable_groups: list[str] = Field(
        description="The Kubernetes groups that the caller can get with an access request."
    )
    client_ca_id: str = Field(validation_alias=AliasPath("client_ca", "id"))
    client_ca_key_id: Annotated[Hex | None, BeforeValidator(_key_identifier)] = Field(
        validation_alias=AliasPath("client_ca", "certificate"),
        description="The authority key identifier of the certificates that the cluster's client CA signs now,"
        " lower-case hex. A certificate with another identifier comes from a CA that is being replaced. Null if users"
        " get tokens.",
    )
    created_at: Time
    updated_at: Time
    verified_at: Time | None = Field(
        description="The time of the last run of `clustercert kubernetes verify` without a fault; null without"
        " such a run."
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
        Literal["id", "name"] | None, Query(description="The order of the list; by default, by id.")
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
