"""Routes that manage clusters, for operators and for admins of the cluster's project.

Only operators may change the options that make the service connect to a cluster. If a cluster uses the admission policy
or ClusterRoles for credentials, or is an issuer of service account tokens, the service sends its own certificate to the
cluster's address. Policy rules depend on the names and labels of clusters, so only operators may change names and
labels.
"""

import functools
import re
from urllib.parse import urlsplit

from fastapi import APIRouter
from starlette.responses import Response

from clustercert.clusters.registration import new_registration
from clustercert.http import IN_PROJECT, responses
from clustercert.http.administration import changes
from clustercert.http.administration import cluster_bodies as bodies
from clustercert.http.administration.changes import AdminCall, AdminChange, ChangeRequest
from clustercert.http.administration.directory import project_by_id
from clustercert.http.openapi import KIB, json_body
from clustercert.http.paging import KeyPageDep, keyset_page
from clustercert.model import Cluster, ClusterOptions, JsonObject
from clustercert.model.addresses import is_local_host
from clustercert.model.clusters import Registration
from clustercert.model.errors import Forbidden, InvalidRequest, NotFound
from clustercert.model.rights import operates
from clustercert.pki.certificates import fingerprint
from clustercert.pki.signer import LOCAL
from clustercert.policy.rule_settings import credential_rule_problem, effective_exemptions, exemption_problem

CLUSTERS = IN_PROJECT + "/clusters"
CLUSTER = CLUSTERS + "/{cluster}"

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

router = APIRouter(tags=["Administration"])


@router.get(CLUSTERS, responses=changes.listed(bodies.ClusterListBody))
async def list_clusters(call: AdminCall, project_id: str, page: KeyPageDep) -> Response:
    """List the clusters of a project. Sorted by id. Only for project admins and operators."""
    read = functools.partial(call.services.clusters.queries.page, project_id)
    return responses.private(await keyset_page("clusters", read, bodies.ClusterBody.render, page))


@router.get(CLUSTER, responses=changes.one(bodies.ClusterBody))
async def show_cluster(call: AdminCall, project_id: str, cluster: str) -> Response:
    """Show how a cluster is registered. `cluster` is a name or id. Only for project admins and operators."""
    return changes.shown(bodies.ClusterBody.render(await call.services.clusters.find(project_id, cluster)))


@router.get(CLUSTER + "/client-ca", responses=changes.one(bodies.ClientCABody, bodies.NO_CLIENT_CA))
async def show_client_ca(call: AdminCall, project_id: str, cluster: str) -> Response:
    """Show a cluster's client CA, and where its key is. `cluster` is a name or id.

    Only for project admins and operators. The service asks the CA's signer, so the status is 503 if the signer can't be
    reached. The status is 409 if the cluster's credentials are tokens, because the cluster has no client CA.
    """
    clusters = call.services.clusters
    found = await clusters.find(project_id, cluster)
    ca, certificate = found.client_ca, found.client_ca.ca_certificate
    custody = await clusters.key_custody(found)
    body = bodies.ClientCABody.render(
        ca,
        subject=certificate.subject.rfc4514_string(),
        sha256=fingerprint(certificate),
        key_location=custody.location,
        key_properties=dict(custody.proof),
        access_policy=custody.access_policy,
    )
    return changes.shown(body)


@router.put(
    CLUSTER,
    responses=changes.replaced(bodies.ClusterBody),
    openapi_extra=json_body(bodies.ClusterRequest, limit=128 * KIB),
)
async def put_cluster(change: AdminChange, project_id: str, cluster: str) -> Response:
    """Register or change a cluster. `cluster` is the name or, for an existing cluster, the name or id.

    Only for project admins and operators. Only operators may rename a cluster, and set or change `labels`, `admission`,
    `credential_roles`, `api_servers`, `discover_api_servers`, `group_roles`, `allow_cluster_admin`, `signer` and
    `signer_token`. Only operators may change the address and CA of a cluster that has `admission` or
    `credential_roles`, whose own API server signs, whose service accounts can log in, or whose client CA is being
    rotated, and all addresses of a cluster whose credentials are tokens.
    """
    call = change.call
    clusters, actor = call.services.clusters, call.caller.actor
    # Prepare only one cluster for all attempts, because each prepared cluster may leave a CA at an external signer.
    prepared: Cluster | None = None

    async def save(before: Cluster | None, current: JsonObject | None) -> Cluster:
        nonlocal prepared
        await project_by_id(call, project_id)
        body = change.body(bodies.ClusterRequest, current)
        options = before.options if before is not None else None
        fields = body.model_dump()
        if fields["name"] is None:
            fields["name"] = before.name if before is not None else cluster
        registration = clusters.checked(new_registration(fields, options))
        token = body.signer_token
        await _require_rights(change, before, registration, gives_token=token is not None)
        _check_policy(change, options or ClusterOptions(), registration.options)
        # A dry run sends the token nowhere.
        secret = token.get_secret_value().encode() if token is not None and not change.dry_run else None
        if before is not None:
            return await clusters.replace(before, registration, actor=actor, secret=secret)
        if _ID.fullmatch(cluster):
            raise NotFound(f"There is no cluster with the id {cluster}.")
        if registration.name != cluster:
            raise InvalidRequest(
                "name: a new cluster gets the name in the path. Send this name, or leave it out."
            )
        prepared = prepared or await clusters.prepare(
            project_id, registration, secret=secret, planned=change.dry_run
        )
        await clusters.register(prepared, actor=actor)
        return prepared

    return await changes.put(
        change, lambda: clusters.find(project_id, cluster), save, bodies.ClusterBody.render
    )


@router.delete(CLUSTER, responses=changes.changed(bodies.KeyDeletionsBody))
async def delete_cluster(change: AdminChange, project_id: str, cluster: str) -> Response:
    """Remove a cluster and the keys of its client CAs.

    `cluster` is a name or id. The answer says what happened to the keys. Only for project admins and operators. Only
    operators may remove a cluster whose credentials are tokens, because nothing ends these tokens afterwards.
    """
    clusters = change.call.services.clusters
    removed = ""

    async def remove(found: Cluster) -> None:
        nonlocal removed
        if found.credential_kind == "token" and not operates(change.call.caller):
            raise Forbidden(
                "Only operators may remove a cluster whose credentials are tokens: without the service, the"
                " cluster's tokens work until they expire. Ask an operator."
            )
        await clusters.remove(found, actor=change.call.caller.actor, unchanged=True)
        removed = found.id

    await changes.delete(
        change, lambda: clusters.find(project_id, cluster), remove, bodies.ClusterBody.render
    )
    return responses.private(await deleted_keys(change, removed))


async def deleted_keys(change: ChangeRequest, cluster_id: str) -> JsonObject:
    """Delete the keys of a cluster's discarded CAs, except in a dry run. Returns what happened to the keys."""
    if change.dry_run:
        return {"keys": []}
    deleted = await change.call.services.discarded_keys.delete_keys_of(
        cluster_id, actor=change.call.caller.actor
    )
    return {"keys": [bodies.KeyDeletionBody.render(each) for each in deleted]}


async def _require_rights(
    change: ChangeRequest, before: Cluster | None, registration: Registration, *, gives_token: bool
) -> None:
    """Raise Forbidden if a project admin changes fields on which policy rules or connections of the service depend."""
    if operates(change.call.caller):
        return
    options = before.options if before is not None else ClusterOptions()
    is_connected = options.admission or options.credential_roles is not None or _is_issuer(change, before)
    changed = {
        "labels": registration.labels != (before.labels if before is not None else {}),
        # A new cluster has a new CA, so its certificates are valid only where an API server is set up to trust the new
        # CA.
        "name": before is not None and registration.name != before.name,
        "admission": registration.options.admission != options.admission,
        "credential_roles": registration.options.credential_roles != options.credential_roles,
        # The service sends temporary certificates to these addresses while it rotates the client CA.
        "api_servers": registration.api_servers != (before.api_servers if before is not None else ()),
        "discover_api_servers": registration.options.discover_api_servers != options.discover_api_servers,
        "group_roles": registration.options.group_roles != options.group_roles,
        "allow_cluster_admin": registration.options.allow_cluster_admin != options.allow_cluster_admin,
        "signer": registration.signer != (before.signer if before is not None else LOCAL),
        "signer_token": gives_token,
    }
    if before is not None:
        address = {
            "internal_url": registration.internal_url != before.internal_url,
            "server_ca": registration.server_ca_pem != before.server_ca_pem,
        }
        if is_connected or (any(address.values()) and await _is_contacted(change, before)):
            changed |= address
        if before.credential_kind == "token":
            # Users send their tokens to these addresses. The CA may be public, so that others can get certificates of
            # this CA.
            changed |= {
                "external_url": registration.external_url != before.external_url,
                "san_urls": registration.san_urls != before.san_urls,
            }
    if fields := [name for name, is_changed in changed.items() if is_changed]:
        raise Forbidden(f"{', '.join(fields)}: only operators may set or change this.")
    _require_remote_addresses(before, registration)


def _require_remote_addresses(before: Cluster | None, registration: Registration) -> None:
    """Raise Forbidden if a new address leads to the machine of this service, or to its link.

    This service may connect to a cluster's address. Some addresses on its own machine are reachable only from there.
    """
    known = {before.internal_url, before.external_url, *before.san_urls} if before is not None else set()
    addresses = {"internal_url": (registration.internal_url,), "san_urls": registration.san_urls}
    if registration.external_url is not None:
        addresses["external_url"] = (registration.external_url,)
    for name, urls in addresses.items():
        for url in urls:
            if url not in known and is_local_host(urlsplit(url).hostname or ""):
                raise Forbidden(
                    f"{name}: {url} is a loopback or link-local address. Only operators may register such an address."
                    " Give an address that other machines reach."
                )


async def _is_contacted(change: ChangeRequest, cluster: Cluster) -> bool:
    """Whether the service sends a credential to the cluster's address, or a certificate during a rotation of its CA."""
    services = change.call.services
    if await services.clusters.own_cas(cluster):
        return True
    rotation = await services.ca_rotations.queries.rotation(cluster.id)
    return rotation is not None and rotation.is_running


def _is_issuer(change: ChangeRequest, cluster: Cluster | None) -> bool:
    """Whether the settings trust a cluster's API server as an issuer of service account tokens."""
    oidc = change.call.services.oidc
    if oidc is None or cluster is None:
        return False
    return any(issuer.cluster == cluster.id for issuer in oidc.issuers)


def _check_policy(change: ChangeRequest, before: ClusterOptions, options: ClusterOptions) -> None:
    """Raise InvalidRequest if new options don't fit the policy."""
    policy = change.call.services.policy
    rules = set(options.credential_roles or {}) - set(before.credential_roles or {})
    if problem := credential_rule_problem(rules, policy):
        raise InvalidRequest(f"credential_roles: {problem}")
    for_operator = operates(change.call.caller)
    if problem := exemption_problem(effective_exemptions(before, options), policy, for_operator=for_operator):
        raise InvalidRequest(f"exemptions: {problem}")
