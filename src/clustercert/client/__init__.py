"""HTTP client of this service's own API, for the command line; any CCE v3 service with Keystone will do.

It keeps nothing. Who is logged in where is the command line's business.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Self
from urllib.parse import quote

import httpx

from clustercert.client.wire import Answer, Wire, an_object, expected_form
from clustercert.model import JsonObject

# CCE API reference, cce_02_0248: 1 to 1825 days, -1 means the longest.
LONGEST = -1
# As in the catalogs of Open Telekom Cloud.
CCE_SERVICE = "ccev2.0"


@dataclass(frozen=True, slots=True)
class Login:
    """A user with a password, and the project that they want a token for.

    Attributes:
        user: a name in `domain`, or with `domain` None an id.
        project: a name in `project_domain`, or in the user's own where that is None.
    """

    user: str
    domain: str | None
    password: str = field(repr=False)
    project_id: str | None = None
    project: str | None = None
    project_domain: str | None = None


@dataclass(frozen=True, slots=True)
class Named:
    """An id and a name: of a project, or of a cluster."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Session:
    """A token and what it is worth.

    Attributes:
        project: its scope, or None.
        service_url: where its catalog says that the clusters' API is, or None.
    """

    token: str = field(repr=False)
    expires_at: datetime
    user: Named
    project: Named | None
    service_url: str | None


@dataclass(frozen=True, slots=True)
class Wish:
    """What a kubeconfig is asked for with. Field meanings as in the API."""

    duration: int | None = None
    expire_at: datetime | None = None
    csr_pem: str | None = None
    reason: str | None = None

    def body(self) -> JsonObject:
        """The fields that are said."""
        expire_at = (
            f"{self.expire_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} +0000 UTC" if self.expire_at else None
        )
        fields = {
            "duration": self.duration,
            "expire_at": expire_at,
            "csr": self.csr_pem,
            "reason": self.reason,
        }
        return {name: value for name, value in fields.items() if value is not None}


class Client:
    """Talks to one service. Raises ClientError, and nothing else, for whatever goes wrong."""

    def __init__(
        self,
        url: str,
        auth: httpx.Auth | None = None,
        *,
        ca_pem: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Connect when the first request is made.

        Attributes:
            url: as `wire.service_url` gives it.
            ca_pem: the CAs to trust instead of this machine's own.
        """
        self._wire = Wire(url, auth, ca_pem, transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wire.close()

    def log_in(self, login: Login) -> Session:
        """A new token by password."""
        user: JsonObject = {"password": login.password}
        user |= (
            {"id": login.user}
            if login.domain is None
            else {"name": login.user, "domain": {"name": login.domain}}
        )
        return self._new_token({"methods": ["password"], "password": {"user": user}}, _scope(login))

    def rescoped(self, token: str, project_id: str) -> Session:
        """A new token for a project, by one for another scope."""
        return self._new_token(
            {"methods": ["token"], "token": {"id": token}}, {"project": {"id": project_id}}
        )

    def session(self, token: str) -> Session:
        """What a token is worth."""
        headers = {"X-Auth-Token": token, "X-Subject-Token": token}
        return _session(token, self._wire.exchange("GET", "/v3/auth/tokens", headers=headers))

    def revoke(self, token: str) -> None:
        """End a token."""
        headers = {"X-Auth-Token": token, "X-Subject-Token": token}
        self._wire.exchange("DELETE", "/v3/auth/tokens", headers=headers)

    def projects(self) -> tuple[Named, ...]:
        """The projects that the caller has a role in."""
        answer = self._wire.exchange("GET", "/v3/auth/projects")
        with expected_form(answer.url):
            return tuple(_named(item) for item in _list(answer.body["projects"]))

    def clusters(self, project_id: str) -> tuple[Named, ...]:
        """The clusters of a project."""
        answer = self._wire.exchange("GET", _clusters(project_id))
        with expected_form(answer.url):
            found = [an_object(an_object(item)["metadata"]) for item in _list(answer.body["items"] or [])]
            return tuple(Named(str(item["uid"]), str(item["name"])) for item in found)

    def contexts(self, project_id: str, cluster_id: str) -> tuple[str, ...]:
        """The contexts of a cluster's kubeconfigs, but for any `customSAN-N`: only a kubeconfig tells of those."""
        answer = self._wire.exchange("GET", f"{_cluster(project_id, cluster_id)}/openapi")
        with expected_form(answer.url):
            public = an_object(answer.body["status"]).get("publicEndpoint")
        return ("internal", "external", "externalTLSVerify") if public else ("internal",)

    def kubeconfig(self, project_id: str, cluster_id: str, wish: Wish) -> JsonObject:
        """A new certificate for the caller, as the service answers it: not looked into yet."""
        return self._wire.exchange("POST", _clustercert(project_id, cluster_id), body=wish.body()).body

    def longest(self, project_id: str, cluster_id: str) -> datetime:
        """When a certificate would end that is issued now for as long as the policy allows."""
        path = f"{_clustercert(project_id, cluster_id)}?dryRun=All"
        answer = self._wire.exchange("POST", path, body=Wish(duration=LONGEST).body())
        with expected_form(answer.url):
            return _time(answer.body["not_after"])

    def _new_token(self, identity: JsonObject, scope: JsonObject) -> Session:
        body: JsonObject = {"auth": {"identity": identity} | ({"scope": scope} if scope else {})}
        answer = self._wire.exchange("POST", "/v3/auth/tokens", body=body)
        return _session(answer.headers.get("X-Subject-Token", ""), answer)


def _clusters(project_id: str) -> str:
    return f"/api/v3/projects/{quote(project_id, safe='')}/clusters"


def _cluster(project_id: str, cluster_id: str) -> str:
    return f"{_clusters(project_id)}/{quote(cluster_id, safe='')}"


def _clustercert(project_id: str, cluster_id: str) -> str:
    return f"{_cluster(project_id, cluster_id)}/clustercert"


def _scope(login: Login) -> JsonObject:
    if login.project_id is not None:
        return {"project": {"id": login.project_id}}
    if login.project is None:
        return {}
    domain: JsonObject = {"domain": {"name": login.project_domain}} if login.project_domain else {}
    return {"project": {"name": login.project} | domain}


def _session(token: str, answer: Answer) -> Session:
    with expected_form(answer.url):
        said = an_object(answer.body["token"])
        project = said.get("project")
        if not token:
            raise ValueError("no token")
        return Session(
            token=token,
            expires_at=_time(said["expires_at"]),
            user=_named(said["user"]),
            project=_named(project) if project else None,
            service_url=_catalog_url(said.get("catalog")),
        )


def _catalog_url(catalog: object) -> str | None:
    services = _list(catalog) if catalog else []
    for service in map(an_object, services):
        if service.get("type") == CCE_SERVICE:
            for endpoint in map(an_object, _list(service["endpoints"])):
                if endpoint.get("interface") == "public":
                    return str(endpoint["url"])
    return None


def _time(value: object) -> datetime:
    """An aware time; Keystone's are in UTC, whether they say so or not."""
    time = datetime.fromisoformat(str(value))
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _named(value: object) -> Named:
    item = an_object(value)
    return Named(str(item["id"]), str(item["name"]))


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value
