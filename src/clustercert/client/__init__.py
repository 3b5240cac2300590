"""HTTP client of this service's API, for the command line.

The client stores nothing; the command line saves logins.
"""

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from urllib.parse import quote

from clustercert.client.auth import ProjectTokenAuth
from clustercert.client.connection import (
    OWN,
    ApiError,
    ApiResponse,
    ClientError,
    ServiceClient,
    json_object,
    one_line,
)
from clustercert.file_names import is_plain
from clustercert.model import JsonObject
from clustercert.model.choices import CredentialKind
from clustercert.model.identity import qualified_name
from clustercert.model.rights import AUDITOR, OPERATOR

# The statuses with which a service answers if it does not have an operation.
_NO_SUCH_OPERATION = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED})
# The service type of CCE in the service catalogs of Open Telekom Cloud.
CCE_SERVICE = "ccev2.0"


@dataclass(frozen=True, slots=True)
class PasswordLogin:
    """User name and password, and the requested project.

    Attributes:
        user: the user's name if `domain` or `domain_id` is set, otherwise the user's id.
        project: the project's name.
        project_domain: the name of the project's domain; by default the user's domain.
    """

    user: str
    domain: str | None
    password: str = field(repr=False)
    project_id: str | None = None
    project: str | None = None
    project_domain: str | None = None
    domain_id: str | None = None


@dataclass(frozen=True, slots=True)
class NamedRef:
    """The id and name of a user or project, and the name of its domain."""

    id: str
    name: str
    domain: str

    @property
    def shown_name(self) -> str:
        return qualified_name(self.name, self.domain)


@dataclass(frozen=True, slots=True)
class ProjectRef(NamedRef):
    """A project in which the caller has a role.

    Attributes:
        roles: the caller's roles in the project, sorted by name; empty if they are not known.
    """

    domain_id: str
    roles: tuple[str, ...] = ()

    @classmethod
    def parse(cls, item: JsonObject) -> "ProjectRef":
        """Parse an item of a list. Raises LookupError or ValueError."""
        roles = tuple(map(str, _list(item["roles"])))
        return cls(_id(item["id"]), str(item["name"]), str(item["domain"]), str(item["domain_id"]), roles)


@dataclass(frozen=True, slots=True)
class RoleClaim:
    """A claim that an issuer's rules for roles read.

    Attributes:
        value: the value in the user's token; empty if the token does not have the claim.
        is_met: whether the claim meets the nearest rule for the user; `None` if the service does not say.
    """

    claim: str
    value: str
    is_met: bool | None

    @classmethod
    def parse(cls, item: JsonObject) -> "RoleClaim":
        """Parse an item of a list. Raises LookupError or TypeError."""
        is_met = item["is_met"]
        if not isinstance(is_met, bool | None):
            raise TypeError("is_met is not a boolean")
        return cls(one_line(str(item["claim"])), one_line(str(item["value"])), is_met)


@dataclass(frozen=True, slots=True)
class CurrentUser:
    """The user who sends the requests.

    Attributes:
        domain: name of the user's domain.
        issuer: the URL of the OIDC issuer or of Keystone, or `built-in`.
        service_roles: the user's roles in the whole service, such as `operator`.
        projects: the projects in which the user has a role.
        missed_role_claims: the claims that the issuer's rules for roles read, if the user has a token of an OIDC issuer
            that no rule gives a role; else `None`.
    """

    id: str
    name: str
    domain: str
    issuer: str
    service_roles: tuple[str, ...] = ()
    projects: tuple[ProjectRef, ...] = ()
    missed_role_claims: tuple[RoleClaim, ...] | None = None

    @property
    def shown_name(self) -> str:
        return qualified_name(self.name, self.domain)

    @property
    def is_operator(self) -> bool:
        return OPERATOR in self.service_roles

    @property
    def sees_all_clusters(self) -> bool:
        return self.is_operator or AUDITOR in self.service_roles


@dataclass(frozen=True, slots=True)
class LoginToken:
    """A token with its properties.

    Attributes:
        project: the scope of the token, or `None`.
        service_url: the address of the cluster API in Keystone's service catalog, or `None`.
    """

    token: str = field(repr=False)
    expires_at: datetime
    user: NamedRef
    project: NamedRef | None
    service_url: str | None


@dataclass(frozen=True, slots=True)
class IssueOptions:
    """The options of a kubeconfig request, with the same names and meanings as in the API.

    Attributes:
        expires_in: the requested lifetime, sent in whole seconds.
        access_request: the id of the access request whose groups the certificate gets.
        credential: `token` for a cluster whose credentials are tokens; by default, a certificate is requested.
    """

    duration: int | None = None
    expire_at: datetime | None = None
    expires_in: timedelta | None = None
    shorten: bool | None = None
    csr: str | None = None
    reason: str | None = None
    access_request: str | None = None
    credential: CredentialKind | None = None

    def body(self) -> JsonObject:
        """Build the request body from the options that are set."""
        expire_at = self.expire_at and f"{self.expire_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} +0000 UTC"
        expires_in = None if self.expires_in is None else int(self.expires_in.total_seconds())
        fields = asdict(self) | {"expire_at": expire_at, "expires_in": expires_in}
        return {name: value for name, value in fields.items() if value is not None}


class Client(ServiceClient):
    """Calls one service. The methods raise only ClientError."""

    def log_in(self, login: PasswordLogin) -> LoginToken:
        """Create a token with a password."""
        user: JsonObject = {"id": login.user}
        if login.domain_id is not None:
            user = {"name": login.user, "domain": {"id": login.domain_id}}
        elif login.domain is not None:
            user = {"name": login.user, "domain": {"name": login.domain}}
        user["password"] = login.password
        return self._new_token({"methods": ["password"], "password": {"user": user}}, _scope(login))

    def rescope(self, token: str, project_id: str) -> LoginToken:
        """Create a token for a project from a token for another scope."""
        return self._new_token(
            {"methods": ["token"], "token": {"id": token}}, {"project": {"id": project_id}}
        )

    def session(self, token: str) -> LoginToken:
        """Return the session of a token: the user, the project and the expiry of the token."""
        headers = {"X-Auth-Token": token, "X-Subject-Token": token}
        return self._parse_session(token, self.exchange("GET", "/v3/auth/tokens", headers=headers))

    def revoke(self, token: str) -> None:
        headers = {"X-Auth-Token": token, "X-Subject-Token": token}
        self.exchange("DELETE", "/v3/auth/tokens", headers=headers)

    def change_password(self, user_id: str, old: str, new: str) -> None:
        body: JsonObject = {"user": {"original_password": old, "password": new}}
        self.exchange("POST", f"/v3/users/{quote(user_id, safe='')}/password", body=body)

    def caller(self) -> CurrentUser:
        """Return the owner of the token or access key."""
        body = self._caller()
        with self.check_format():
            texts = {name: str(body[name]) for name in ("id", "name", "domain", "issuer")}
            service_roles = tuple(map(str, _list(body["service_roles"])))
            missed = body.get("missed_role_claims")
            return CurrentUser(
                **texts,
                service_roles=service_roles,
                projects=_projects(body),
                missed_role_claims=None
                if missed is None
                else tuple(RoleClaim.parse(json_object(each)) for each in _list(missed)),
            )

    def projects(self) -> tuple[ProjectRef, ...]:
        """List the projects in which the caller has a role."""
        body = self._caller()
        with self.check_format():
            return _projects(body)

    def use_project(self, project_id: str) -> None:
        """Send a token for a project with requests whose path names no project. Raises ClientError.

        Does nothing if the caller has no role in the project, or if the credential is for all projects.
        """
        if isinstance(self.auth, ProjectTokenAuth) and project_id in {each.id for each in self.projects()}:
            self.auth.default_project = project_id

    def _caller(self) -> JsonObject:
        try:
            return self.exchange("GET", f"{OWN}/caller").body
        except ApiError as error:
            if error.http_status not in _NO_SUCH_OPERATION:
                raise
            raise ClientError(f"{self.url} is not a clustercert service. Check the address.") from error

    def issue(self, project_id: str, cluster_id: str, options: IssueOptions) -> ApiResponse:
        """Request a kubeconfig with a new certificate for the caller. The response is not validated."""
        path = f"{_cluster(project_id, cluster_id)}/clustercert"
        return self.exchange("POST", path, body=options.body())

    def _new_token(self, identity: JsonObject, scope: JsonObject) -> LoginToken:
        body: JsonObject = {"auth": {"identity": identity} | ({"scope": scope} if scope else {})}
        response = self.exchange("POST", "/v3/auth/tokens", body=body)
        return self._parse_session(response.headers.get("X-Subject-Token", ""), response)

    def _parse_session(self, token: str, response: ApiResponse) -> LoginToken:
        with self.check_format():
            body = json_object(response.body["token"])
            project = body.get("project")
            if not token:
                raise ValueError("the response contains no token")
            return LoginToken(
                token=token,
                expires_at=_time(body["expires_at"]),
                user=_named(body["user"]),
                project=_named(project) if project else None,
                service_url=_catalog_url(body.get("catalog")),
            )


def _cluster(project_id: str, cluster_id: str) -> str:
    return f"/api/v3/projects/{quote(project_id, safe='')}/clusters/{quote(cluster_id, safe='')}"


def _scope(login: PasswordLogin) -> JsonObject:
    if login.project_id is not None:
        return {"project": {"id": login.project_id}}
    if login.project is None:
        return {}
    domain: JsonObject = {"domain": {"name": login.project_domain}} if login.project_domain else {}
    return {"project": {"name": login.project} | domain}


def _catalog_url(catalog: object) -> str | None:
    services = _list(catalog) if catalog else []
    for service in map(json_object, services):
        if service.get("type") == CCE_SERVICE:
            for endpoint in map(json_object, _list(service["endpoints"])):
                if endpoint.get("interface") == "public":
                    return str(endpoint["url"])
    return None


def _time(value: object) -> datetime:
    """Parse a time. Keystone's times are in UTC, even without an offset."""
    time = datetime.fromisoformat(str(value))
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _named(value: object) -> NamedRef:
    item = json_object(value)
    return NamedRef(_id(item["id"]), str(item["name"]), str(json_object(item["domain"])["name"]))


def _id(value: object) -> str:
    """Return an id. Raises ValueError if the id is not safe in a file name, because saved files are named by ids."""
    if not isinstance(value, str) or not is_plain(value):
        raise ValueError("the response contains an id with unexpected characters")
    return value


def _projects(caller: JsonObject) -> tuple[ProjectRef, ...]:
    return tuple(ProjectRef.parse(json_object(item)) for item in _list(caller["projects"]))


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError("The value is not a list.")
    return value
