"""The route that returns a kubeconfig for the exec plugin, without a certificate or a secret."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import AfterValidator, BaseModel, Field
from starlette.responses import Response

from clustercert.file_names import is_plain
from clustercert.http import OWN, openapi, responses
from clustercert.http.cce.clustercert import to_json, to_yaml
from clustercert.http.dependencies import CallDep
from clustercert.http.openapi import described
from clustercert.http.responses import prefers
from clustercert.model.errors import Conflict, NotFound
from clustercert.model.identity import qualified_name
from clustercert.model.kubeconfigs import (
    VERIFIED,
    ClusterRef,
    cluster_addresses,
    exec_kubeconfig,
    first_address,
)
from clustercert.model.rights import reads_everything

# kubectl looks for a program without a path in PATH.
PLUGIN = ("kubectl-clustercert",)
DEFAULT_PROFILE = "default"
YAML = "application/yaml"


def _profile(text: str) -> str:
    if not is_plain(text):
        raise ValueError("must have 1 to 64 letters, digits, or characters of ._-")
    return text


Profile = Annotated[str, AfterValidator(_profile), Field(json_schema_extra={"maxLength": 64})]


class ExecKubeconfig(BaseModel):
    """A kubeconfig with one context, whose user is the exec plugin `clustercert credential`."""

    kind: Literal["Config"]
    apiVersion: Literal["v1"]  # noqa: N815 - Kubernetes' name
    clusters: list[dict[str, object]]
    users: list[dict[str, object]]
    contexts: list[dict[str, object]]
    current_context: Annotated[str, Field(alias="current-context")]


router = APIRouter(tags=["Inventory"])


@router.get(
    OWN + "/clusters/{cluster_id}/kubeconfig",
    responses=described(
        "The kubeconfig.",
        ExecKubeconfig,
        content={YAML: openapi.TEXT},
        errors=openapi.ERRORS | {409: "The cluster has no address whose certificate kubectl can check."},
    ),
)
async def show_kubeconfig(
    call: CallDep,
    cluster_id: str,
    profile: Annotated[
        Profile | None,
        Query(description="The saved login that the exec plugin uses. By default, `default`."),
    ] = None,
) -> Response:
    """Return a kubeconfig, without secrets, that gets certificates from the exec plugin.

    The command line must be installed on the machine that uses the kubeconfig, and the caller must be logged in on this
    machine. The format is YAML if the header Accept prefers YAML, else JSON. Finds the clusters of all projects in
    which the caller has a role, whatever the token's scope.
    """
    services = call.services
    caller = await services.identity.with_all_roles(call.caller)
    projects = None if reads_everything(caller) else caller.roles.keys()
    found = await services.clusters.queries.reachable(cluster_id, projects)
    if found is None or (project := found.project_name) is None:
        raise NotFound(
            "There is no such cluster, or you have no role in its project. Check the cluster's id."
        )
    addresses = cluster_addresses(found.internal_url, found.external_url, found.server_ca_pem)
    address = first_address(addresses, VERIFIED)
    if address is None:
        raise Conflict(
            "The cluster has no address whose certificate kubectl can check. `clustercert kubeconfig merge --insecure`"
            " skips the check, if the network is protected in another way."
        )
    ref = ClusterRef(
        profile=profile or DEFAULT_PROFILE,
        project_id=found.project_id,
        project=project.name,
        domain=project.domain.name,
        cluster_id=found.id,
        cluster=found.name,
        login=qualified_name(caller.user.name, caller.user.domain.name),
    )
    document = exec_kubeconfig(ref, address, PLUGIN)
    as_yaml = prefers(call.request, (YAML,))
    content = to_yaml(document) if as_yaml else to_json(document)
    headers = responses.NO_STORE | {"Vary": "Accept"}
    return Response(content, headers=headers, media_type=YAML if as_yaml else "application/json")
