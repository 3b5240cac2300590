"""The clusters that the visitor can reach, and how to connect to them."""

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Self
from urllib.parse import quote

from starlette.responses import Response

from clustercert.http.cce.clustercert import to_yaml
from clustercert.http.console.api import path
from clustercert.http.console.cluster_address import command_name
from clustercert.http.console.visits import PREFIX, Pages, Visit, raise_fault, with_query
from clustercert.http.responses import NO_STORE
from clustercert.model import JsonObject, parse_rfc3339
from clustercert.model.errors import ClustercertError, InvalidRequest, NotFound
from clustercert.model.identity import BUILT_IN, qualified_name
from clustercert.model.kubeconfigs import (
    ID_DIGITS,
    VERIFIED,
    first_address,
    issued_addresses,
    one_context,
)
from clustercert.model.wheel import wheel_file
from clustercert.policy.lifetime import BACKDATE, LONGEST

YAML = "application/yaml"
LIST = f"{PREFIX}/clusters"
# The lifetimes that the page offers, besides the longest allowed.
_LIFETIMES = tuple(timedelta(hours=hours) for hours in (1, 4, 8, 24))
# The maximum number of the visitor's certificates and requests that a page reads.
_MANY = 500
# A sample reason, to find out whether the policy refuses only because of a missing reason.
_SAMPLE = "a reason"

pages = Pages()


@dataclass(frozen=True, slots=True)
class KubectlSetup:
    """How the visitor uses kubectl on a machine.

    Attributes:
        install: the command that installs the command line.
        login: the command with which they log in.
        options: the options of `clustercert kubeconfig merge`.
        renews: whether kubectl renews the certificates. This needs a saved login, which users of Keystone don't have.
    """

    install: ClassVar[str] = f"pipx install {wheel_file()}"
    login: str
    options: tuple[str, ...]
    renews: bool

    @classmethod
    def of_visitor(cls, visit: Visit) -> Self:
        if visit.me.session.method == "keystone":
            return cls(". ./openrc", ("--embed", "--from-env"), renews=False)
        user, command = visit.me.caller.user, ["clustercert", "login", visit.service_url]
        if visit.me.caller.issuer == BUILT_IN:
            command += ["--user", qualified_name(user.name, user.domain.name)]
        return cls(shlex.join(command), (), renews=True)

    def merge(self, cluster: Mapping[str, Any]) -> str:
        """Return the command that adds a cluster to the kubeconfig."""
        return self._merge(command_name(cluster))

    @property
    def merge_all(self) -> str:
        """The command that adds all clusters to the kubeconfig."""
        return self._merge("--all")

    def _merge(self, clusters: str) -> str:
        return shlex.join(["clustercert", "kubeconfig", "merge", clusters, *self.options])


@dataclass(frozen=True, slots=True)
class Reach:
    """A cluster, and the visitor's access to the cluster.

    Attributes:
        cluster: as in the API's list of reachable clusters.
        request: the visitor's open access request for the cluster; None if there is none.
        certificates: the number of the visitor's live certificates for the cluster.
    """

    cluster: Mapping[str, Any]
    request: Mapping[str, Any] | None
    certificates: int

    @property
    def access(self) -> str:
        """`now`: the policy gives a certificate. `ask`: only an access request gives a certificate. `none`."""
        if self.cluster["longest_lifetime_seconds"] is not None:
            return "now"
        return "ask" if self.cluster["requestable_groups"] else "none"


@pages.get("/clusters")
async def my_clusters(visit: Visit) -> Response:
    search, cursor = visit.query.get("search", "").strip(), visit.query.get("cursor")
    found = await visit.api.get(
        path("clusters"), own="true", order="name", search=search or None, cursor=cursor
    )
    requests = await _open_requests(visit)
    certificates, are_all = await _live_certificates(visit)
    given = {"search": search} if search else {}
    following = {"cursor": found["next"]} if found["next"] is not None else None
    return visit.render(
        "clusters.html",
        reached=[
            Reach(each, requests.get(each["id"]), certificates[each["id"]]) for each in found["clusters"]
        ],
        search=search,
        first=with_query(LIST, given) if cursor is not None else None,
        next=with_query(LIST, given | following) if following is not None else None,
        are_all_counted=are_all,
        is_new=not certificates,
        setup=KubectlSetup.of_visitor(visit),
    )


@pages.get("/clusters/{cluster_id}")
async def connect(visit: Visit) -> Response:
    """One cluster: the visitor's access, and each way to use this access with kubectl."""
    cluster = await _cluster(visit)
    requests = await _open_requests(visit)
    certificates, are_all = await _live_certificates(visit, cluster["id"])
    return visit.render(
        "cluster_connect.html",
        reach=Reach(cluster, requests.get(cluster["id"]), certificates[cluster["id"]]),
        are_all_counted=are_all,
        setup=KubectlSetup.of_visitor(visit),
    )


@pages.get("/clusters/{cluster_id}/kubeconfig")
async def download_kubeconfig(visit: Visit) -> Response:
    """Download a kubeconfig for the exec plugin, without a secret."""
    cluster = await _cluster(visit)
    answer = await visit.api.send("GET", path("clusters", cluster["id"], "kubeconfig"), accept=YAML)
    return _file(answer.body, f"{cluster['name']}.kubeconfig.yaml")


@pages.get("/clusters/{cluster_id}/service-key")
async def ask_for_service_key(visit: Visit) -> Response:
    """Warn about keys that the service generates, and offer such a key."""
    return await _service_key_page(visit, await _cluster(visit))


@pages.post("/clusters/{cluster_id}/service-key", keep=True)
async def download_service_key(visit: Visit) -> Response:
    """Issue a certificate whose key the service generates, and download both as a kubeconfig."""
    cluster = await _cluster(visit)
    parts = ("projects", cluster["project_id"], "clusters", cluster["id"], "clustercert")
    target = "/api/v3/" + "/".join(quote(part, safe="") for part in parts)
    try:
        issued = await visit.api.post(target, _wanted(visit))
    except ClustercertError as refused:
        raise_fault(refused)
        return await _service_key_page(visit, cluster, refused)
    return _file(to_yaml(_usable(issued, cluster)), f"{cluster['name']}.secret.kubeconfig.yaml")


def _wanted(visit: Visit) -> JsonObject:
    """Return the body of the request for a certificate. Raises InvalidRequest for a lifetime that is no number."""
    fields = ("reason", "access_request")
    body: JsonObject = {name: visit.value(name) for name in fields if visit.value(name)}
    if visit.value("seconds") == "longest":
        return body | {"duration": LONGEST}
    if (seconds := visit.number("seconds")) is not None:
        return body | {"expires_in": seconds, "shorten": True}
    raise InvalidRequest("seconds: choose one of the lifetimes.")


async def _service_key_page(
    visit: Visit, cluster: Mapping[str, Any], refused: ClustercertError | None = None
) -> Response:
    explained = await visit.api.get(path("policy", "explain"), cluster=cluster["id"])
    needs_reason = False
    if not explained["allowed"]:
        with_reason = await visit.api.get(path("policy", "explain"), cluster=cluster["id"], reason=_SAMPLE)
        if needs_reason := with_reason["allowed"]:
            explained = with_reason
    signed, longest = explained["would_sign"], timedelta(0)
    if signed is not None:
        longest = parse_rfc3339(signed["not_after"]) - parse_rfc3339(signed["not_before"]) - BACKDATE
    request = (await _open_requests(visit)).get(cluster["id"])
    return visit.render(
        "cluster_service_key.html",
        failure=refused,
        cluster=cluster,
        explained=explained,
        needs_reason=needs_reason,
        longest=longest,
        lifetimes=[each for each in _LIFETIMES if each < longest],
        usable_request=request if request is not None and request["usable"] else None,
        form=visit.form,
    )


def _usable(issued: JsonObject, cluster: Mapping[str, Any]) -> JsonObject:
    """Return a kubeconfig with one context, whose address has a certificate that kubectl checks."""
    address = first_address(issued_addresses(issued), VERIFIED)
    users: Any = issued["users"]
    if address is None:
        return issued
    return one_context(f"{cluster['name']}-{cluster['id'][:ID_DIGITS]}", address, users[0]["user"])


async def _cluster(visit: Visit) -> Mapping[str, Any]:
    """Return the cluster in the path. Raises NotFound if the visitor can't reach the cluster."""
    cluster_id = visit.part("cluster_id")
    found = await visit.api.get(path("clusters"), name=cluster_id)
    for each in found["clusters"]:
        if each["id"] == cluster_id:
            cluster: Mapping[str, Any] = each
            return cluster
    raise NotFound(
        f"There is no such cluster, or you have no role in its project. {LIST} lists your clusters."
    )


async def _open_requests(visit: Visit) -> Mapping[str, Mapping[str, Any]]:
    """Return the visitor's open access requests by cluster id. A user has at most one for each cluster."""
    found = await visit.api.get(path("access-requests"), mine="true", state="open", limit=_MANY)
    return {each["cluster"]["id"]: each for each in found["access_requests"]}


async def _live_certificates(visit: Visit, cluster_id: str | None = None) -> tuple[Counter[str], bool]:
    """Count the visitor's live certificates by cluster id. Also returns whether all of them are counted."""
    found = await visit.api.get(
        path("certificates"), own="true", state="live", limit=_MANY, cluster=cluster_id
    )
    certificates: Iterable[Mapping[str, Any]] = found["certificates"]
    return Counter(str(each["cluster_id"]) for each in certificates), found["next"] is None


def _file(content: bytes, name: str) -> Response:
    """Return a file to save. Names of clusters have only letters, digits, and characters of `._-`."""
    headers = NO_STORE | {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, headers=headers, media_type=YAML)
