"""Logins of people at Keystone, with their passwords."""

from dataclasses import dataclass

from clustercert.authn.federated import KeystonePassword
from clustercert.authn.keystone.answers import (
    ProjectBody,
    ProjectsAnswer,
    TokenAnswer,
    TokenBody,
    UnusableAnswer,
    parsed,
)
from clustercert.authn.keystone.client import RETRY_SECONDS
from clustercert.authn.keystone.connection import NO_CATALOG, KeystoneConnection
from clustercert.authn.keystone.settings import Keystone
from clustercert.authn.keystone.tokens import KeystoneTokens
from clustercert.http_client import Response
from clustercert.model import Caller, JsonObject, Origin
from clustercert.model.errors import CredentialUnverified, InvalidRequest, Unauthenticated
from clustercert.model.ids import is_id
from clustercert.observability import metrics

# Source: Identity API v3, "Password authentication"; a longer value can't be right.
_MAX_VALUE = 1024
# Statuses of a login that Keystone refuses.
_REFUSED = frozenset({400, 401, 403})
# The maximum number of projects in a message.
_MAX_NAMED = 10


@dataclass(frozen=True, slots=True)
class KeystoneLogins:
    """Gets tokens for people, and finds the callers of these tokens."""

    keystone: Keystone
    connection: KeystoneConnection
    tokens: KeystoneTokens

    @property
    def name(self) -> str:
        return self.keystone.name

    @property
    def has_service_roles(self) -> bool:
        """Whether a token with the scope `system` can have roles in the whole service."""
        return bool(self.keystone.system_roles)

    async def caller_of_token(self, token: str, origin: Origin) -> Caller:
        """See `TokenLookup`. Raises CredentialUnverified if Keystone gives no usable answer."""
        return await self.tokens.caller_of_token(token, origin)

    async def log_in(self, login: KeystonePassword) -> str:
        """Return a new token.

        Without a project in the login, the token is for the user's default project or, if this is not a project of this
        service, for the user's only project.

        Raises Unauthenticated if Keystone refuses the login, InvalidRequest if the user must name a project, or
        CredentialUnverified.
        """
        values = (login.user, login.domain, login.password, login.project)
        if any(len(value) > _MAX_VALUE for value in values):
            raise Unauthenticated(
                f"a value of the login is longer than {_MAX_VALUE} characters", unknown=_name(login)
            )
        user = {"name": login.user, "domain": {"name": login.domain}, "password": login.password}
        identity: JsonObject = {"methods": ["password"], "password": {"user": user}}
        scope = _scope(login)
        text, token = await self._token(identity, scope, _name(login))
        if scope is not None or self._is_usable(token):
            return text
        projects = await self._projects(text)
        if len(projects) > 1:
            named = ", ".join(project.name for project in projects[:_MAX_NAMED])
            raise InvalidRequest(f"You have roles in several projects. Name one of these projects: {named}.")
        if not projects:
            return text
        identity = {"methods": ["token"], "token": {"id": text}}
        return (await self._token(identity, {"project": {"id": projects[0].id}}, _name(login)))[0]

    def _is_usable(self, token: TokenBody) -> bool:
        """Whether the token's project is one of this service."""
        allowed = self.keystone.projects
        return token.project is not None and (not allowed or token.project.id in allowed)

    async def _token(
        self, identity: JsonObject, scope: JsonObject | None, name: str
    ) -> tuple[str, TokenBody]:
        """Return a token. `name`: as in `Unauthenticated.unknown`, because Keystone does not say if the user exists."""
        auth = {"identity": identity} | ({"scope": scope} if scope is not None else {})
        try:
            response = await self.connection.send(
                "POST", "/auth/tokens", headers={}, params=NO_CATALOG, body={"auth": auth}
            )
            if response.status in _REFUSED:
                metrics.KEYSTONE_REQUESTS.labels("done").inc()
                raise Unauthenticated(
                    f"keystone refused the login with status {response.status}", unknown=name
                )
            body = parsed(TokenAnswer, _content(response, 201)).token
            text = response.headers.get("x-subject-token", "")
            if not text:
                raise UnusableAnswer("the response has no token")
        except UnusableAnswer as error:
            raise _unusable() from error
        metrics.KEYSTONE_REQUESTS.labels("done").inc()
        return text, body

    async def _projects(self, token: str) -> list[ProjectBody]:
        """Return the user's projects that are projects of this service."""
        try:
            response = await self.connection.send("GET", "/auth/projects", headers={"X-Auth-Token": token})
            found = parsed(ProjectsAnswer, _content(response, 200)).projects
        except UnusableAnswer as error:
            raise _unusable() from error
        metrics.KEYSTONE_REQUESTS.labels("done").inc()
        allowed = self.keystone.projects
        return [each for each in found if each.enabled and (not allowed or each.id in allowed)]


def _name(login: KeystonePassword) -> str:
    return f"{login.domain}/{login.user}"


def _scope(login: KeystonePassword) -> JsonObject | None:
    if login.in_system:
        return {"system": {"all": True}}
    if not login.project:
        return None
    if is_id(login.project):
        return {"project": {"id": login.project}}
    return {"project": {"name": login.project, "domain": {"name": login.domain}}}


def _content(response: Response, expected: int) -> bytes:
    if response.status != expected:
        raise UnusableAnswer(f"the response has status {response.status}")
    return response.content


def _unusable() -> CredentialUnverified:
    metrics.KEYSTONE_REQUESTS.labels("unusable").inc()
    return CredentialUnverified(
        "The identity service sent a response that can't be used. Try again in a moment.",
        retry_after=RETRY_SECONDS,
    )
