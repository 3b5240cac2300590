"""Reads users, groups, roles and other objects from Keystone, caches them, and maps them to users of this service."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import quote

import structlog
from cachetools import TLRUCache, TTLCache
from pydantic import BaseModel

from clustercert.authn.keystone.answers import (
    MAX_GROUPS,
    AssignmentsAnswer,
    CredentialAnswer,
    CredentialBody,
    DomainAnswer,
    DomainBody,
    DomainReference,
    GroupBody,
    GroupsAnswer,
    ProjectAnswer,
    ProjectBody,
    TokenAnswer,
    TokenBody,
    UnusableAnswer,
    UnusableObject,
    UserAnswer,
    UserBody,
    UserReference,
    parsed,
)
from clustercert.authn.keystone.connection import NO_CATALOG, KeystoneConnection, ServiceToken
from clustercert.authn.keystone.settings import Keystone
from clustercert.http_client import Response
from clustercert.model import Domain, FederatedDomain, Group, User
from clustercert.model.errors import CredentialUnverified, Unauthenticated
from clustercert.model.ids import is_user_id
from clustercert.observability import metrics
from clustercert.policy.templates import invisible_problem

RETRY_SECONDS = 10
M = TypeVar("M", bound=BaseModel)

logger = structlog.get_logger()


class KeystoneClient:
    """Reads objects from Keystone. Methods return None for an object that does not exist.

    All methods raise CredentialUnverified if Keystone gives no usable answer, and log the reason. All methods raise
    Unauthenticated if only the object in the answer is unusable, because a second attempt would also fail.
    """

    def __init__(self, connection: KeystoneConnection, service_token: ServiceToken, name: str) -> None:
        self._connection = connection
        self._service_token = service_token
        self._name = name
        self._failure = ""

    async def token(self, text: str) -> TokenBody | None:
        """Validate a token. Returns None if the token has expired or was revoked, or if its user is disabled."""
        answer = await self._read(TokenAnswer, "/auth/tokens", NO_CATALOG, subject=text)
        return answer.token if answer is not None else None

    async def groups(self, user_id: str) -> list[GroupBody] | None:
        """Read the groups of a user."""
        answer = await self._read(GroupsAnswer, f"/users/{quote(user_id, safe='')}/groups")
        if answer is None:
            return None
        if answer.truncated:
            raise self._unusable("groups", UnusableAnswer("the list of groups is cut off"))
        return answer.groups

    async def user(self, user_id: str) -> UserBody | None:
        answer = await self._read(UserAnswer, f"/users/{quote(user_id, safe='')}")
        return answer.user if answer is not None else None

    async def project(self, project_id: str) -> ProjectBody | None:
        answer = await self._read(ProjectAnswer, f"/projects/{quote(project_id, safe='')}")
        return answer.project if answer is not None else None

    async def domain(self, domain_id: str) -> DomainBody | None:
        answer = await self._read(DomainAnswer, f"/domains/{quote(domain_id, safe='')}")
        return answer.domain if answer is not None else None

    async def roles(self, user_id: str, project_id: str) -> frozenset[str]:
        """Read the names of a user's effective roles in a project: direct, through groups, inherited and implied."""
        answer = await self._read(
            AssignmentsAnswer,
            "/role_assignments",
            {
                "user.id": user_id,
                "scope.project.id": project_id,
                "effective": "true",
                "include_names": "true",
            },
        )
        if answer is None:
            return frozenset()
        if answer.truncated:
            raise self._unusable("role_assignments", UnusableAnswer("the list of roles is cut off"))
        # Filter again, because Keystone ignores query parameters that it does not know.
        return frozenset(
            each.role.name
            for each in answer.role_assignments
            if each.user is not None
            and each.user.id == user_id
            and each.scope.project is not None
            and each.scope.project.id == project_id
        )

    async def credential(self, credential_id: str) -> CredentialBody | None:
        answer = await self._read(CredentialAnswer, f"/credentials/{credential_id}")
        return answer.credential if answer is not None else None

    async def _read(
        self,
        model: type[M],
        path: str,
        params: Mapping[str, str] | None = None,
        *,
        subject: str | None = None,
    ) -> M | None:
        try:
            response = await self._ask(path, params, subject)
            answer = parsed(model, response.content) if response is not None else None
        except UnusableObject as error:
            self._answered()
            raise Unauthenticated(f"keystone's answer is not usable: {error}") from error
        except UnusableAnswer as error:
            raise self._unusable(path.split("/")[1], error) from error
        self._answered()
        return answer

    def _answered(self) -> None:
        metrics.KEYSTONE_REQUESTS.labels("done").inc()
        self._failure = ""

    async def _ask(self, path: str, params: Mapping[str, str] | None, subject: str | None) -> Response | None:
        """Send a GET request. Returns None for a 404. Raises UnusableAnswer for any other failure."""
        headers = {"X-Subject-Token": subject} if subject is not None else {}
        response = None
        for _ in range(2):
            own = await self._service_token.current()
            response = await self._connection.send(
                "GET", path, headers={**headers, "X-Auth-Token": own}, params=params
            )
            if response.status != 401:  # noqa: PLR2004
                break
            # The service's own token was revoked, or Keystone's keys were replaced. Log in and try again.
            self._service_token.drop(own)
        if response is None or response.status == 404:  # noqa: PLR2004
            return None
        if response.status not in (200, 203):
            hint = ": the service's user lacks a right" if response.status == 403 else ""  # noqa: PLR2004
            raise UnusableAnswer(f"the response has status {response.status}{hint}")
        if subject is not None and response.headers.get("x-subject-token") != subject:
            raise UnusableAnswer("the answer is about a different token")
        return response

    def _unusable(self, about: str, error: UnusableAnswer) -> CredentialUnverified:
        metrics.KEYSTONE_REQUESTS.labels("unusable").inc()
        # Anyone can cause this failure with an invented token, so don't log the same reason repeatedly.
        if (reason := f"{about}: {error}") != self._failure:
            logger.warning("keystone answer not usable", authority=self._name, reason=reason)
        self._failure = reason
        return CredentialUnverified(
            "The identity service gave no usable answer. Try again in a moment.", retry_after=RETRY_SECONDS
        )


# The maximum number of cached answers. The cached answer about a user with many groups takes about 20 KiB.
MAX_ENTRIES = 4_000
# How long refusals are cached. A cached refusal takes less than 1 KiB.
REFUSAL_SECONDS = 5.0
MAX_REFUSALS = 10_000
# The maximum number of concurrent lookups. Without this maximum, lookups could use up the number of requests that a
# worker handles at the same time, and so delay logins through other identity systems.
MAX_UNDER_WAY = 128

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Found(Generic[V]):
    """An answer from Keystone.

    Attributes:
        seconds: how long the answer may be reused, counted from the request; 0 to use the answer only once.
    """

    value: V
    seconds: float


Ask = Callable[[], Awaitable[Found[V]]]


@dataclass(frozen=True, slots=True)
class _Entry(Generic[V]):
    value: V
    ends_at: float


class Lookups(Generic[V]):
    """A cache of Keystone's answers. Keys are hashes, so that the cache contains no credentials."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        size: int = MAX_ENTRIES,
        refusals: int = MAX_REFUSALS,
        under_way: int = MAX_UNDER_WAY,
    ) -> None:
        self._clock = clock
        self._found: TLRUCache[bytes, _Entry[V]] = TLRUCache(size, _end_of, clock)
        self._refused: TTLCache[bytes, Unauthenticated] = TTLCache(refusals, REFUSAL_SECONDS, clock)
        self._under_way: dict[bytes, asyncio.Task[V]] = {}
        self._most_under_way = under_way

    def cached(self, key: bytes) -> V | None:
        """Return the cached answer, or None if no answer is cached."""
        entry = self._found.get(key)
        return entry.value if entry is not None else None

    async def get(self, key: bytes, ask: Ask[V]) -> V:
        """Return the cached answer, or call `ask` and cache the result.

        Raises Unauthenticated or CredentialUnverified.
        """
        if (value := self.cached(key)) is not None:
            return value
        if (refused := self._refused.get(key)) is not None:
            # Raise a new exception, because an exception object collects the tracebacks of all its raises.
            raise Unauthenticated(refused.reason, known=refused.known)
        task = self._under_way.get(key)
        if task is None:
            if len(self._under_way) >= self._most_under_way:
                raise CredentialUnverified(
                    "The identity service responds slowly. Try again in a moment.", retry_after=1
                )
            task = self._under_way[key] = asyncio.create_task(self._ask(key, ask))
            task.add_done_callback(_retrieve)
        # If this request is cancelled, don't cancel the lookup: other requests may wait for the same lookup.
        return await asyncio.shield(task)

    async def _ask(self, key: bytes, ask: Ask[V]) -> V:
        began = self._clock()
        try:
            found = await ask()
        except Unauthenticated as refusal:
            self._refused[key] = Unauthenticated(refusal.reason, known=refusal.known)
            raise
        finally:
            del self._under_way[key]
        if found.seconds > 0:
            self._found[key] = _Entry(found.value, began + found.seconds)
        return found.value


def _end_of(_key: bytes, entry: _Entry[V], _now: float) -> float:
    return entry.ends_at


def _retrieve(task: "asyncio.Task[V]") -> None:
    """Retrieve the task's exception, or else asyncio logs the exception if all waiting requests were cancelled."""
    if not task.cancelled():
        task.exception()


# The maximum length of a name. A name of this length fits into a certificate together with domain and prefix.
MAX_NAME_BYTES = 200

Roles = Mapping[str | None, frozenset[str]]


def require_undelegated(body: TokenBody) -> None:
    """Refuse a token that was delegated with restrictions, because a certificate can't have the same restrictions.

    A token from an application credential without access rules is accepted, because the token has only the roles that
    the application credential grants.
    """
    for kind, value in (
        ("a trust", body.trust),
        ("an OAuth 1 access token", body.oauth1),
        ("a certificate-bound OAuth 2 token", body.oauth2),
    ):
        if value is not None:
            raise Unauthenticated(f"the token was made under {kind}", known=body.user.id)
    credential = body.application_credential
    if credential is not None and credential.access_rules is not None:
        raise Unauthenticated("the token's application credential has access rules", known=body.user.id)


def token_roles(keystone: Keystone, body: TokenBody) -> tuple[Roles, frozenset[str]]:
    """Return a token's roles by project id, and its roles in the whole service.

    A token scoped to a project has roles only in this project. Only a token scoped to `system` can have roles in the
    whole service.
    """
    names = [role.name for role in body.roles]
    if body.project is not None:
        return {body.project.id: project_roles(keystone, names)}, frozenset()
    if body.domain is None and body.system == {"all": True}:
        known = keystone.system_roles
        return {}, frozenset(known[name] for name in names if name in known)
    return {}, frozenset()


def project_roles(keystone: Keystone, names: Iterable[str]) -> frozenset[str]:
    """Return the names that these Keystone roles have in this service. Leaves out roles without such a name."""
    if keystone.roles is None:
        return frozenset(names)
    return frozenset(keystone.roles[name] for name in names if name in keystone.roles)


def mapped_user(keystone: Keystone, user: UserReference) -> User:
    """Return the user with the name and domain that the user has in this service.

    Raises Unauthenticated if the id, domain or name is not accepted.
    """
    if not is_user_id(user.id):
        raise Unauthenticated("the user's id has neither 32 nor 64 hex digits")
    if keystone.user_domains is not None and user.domain.id not in keystone.user_domains:
        raise Unauthenticated("the user's domain is not among identity.keystone.user_domains", known=user.id)
    name, domain = _named(keystone, user.name, user.domain, user.id)
    return User(user.id, name, domain)


def mapped_groups(
    keystone: Keystone, user_id: str, groups: list[GroupBody], domains: Mapping[str, DomainReference]
) -> tuple[Group, ...]:
    """Return a user's groups, sorted by name. `domains` maps the id of each group's domain to the domain.

    Raises Unauthenticated if a group is unusable: without the group, the policy would decide wrongly.
    """
    if len(groups) > MAX_GROUPS:
        raise Unauthenticated(f"the user is in more than {MAX_GROUPS} groups", known=user_id)
    found = []
    for group in groups:
        if not is_user_id(group.id):
            raise Unauthenticated("the id of a group has neither 32 nor 64 hex digits", known=user_id)
        name, domain = _named(keystone, group.name, domains[group.domain_id], user_id)
        found.append(Group(group.id, name, domain))
    return tuple(sorted(found, key=lambda group: (group.name, group.id)))


def _named(keystone: Keystone, name: str, domain: DomainReference, user_id: str) -> tuple[str, Domain]:
    """Return the name and the domain that a user or group has in this service."""
    for text in (name, domain.name):
        if invisible_problem(text) or len(text.encode()) > MAX_NAME_BYTES:
            raise Unauthenticated(
                f"a name has invisible characters, is not in Unicode NFC, or has more than {MAX_NAME_BYTES} bytes:"
                f" {text[:64]!a}",
                known=user_id,
            )
    if not keystone.prefix_names:
        return name, FederatedDomain(domain.id, domain.name)
    if "/" in domain.name:
        # If a domain's name contained a slash, users of two domains could get the same name.
        raise Unauthenticated(f"the name of the domain {domain.name[:64]!a} has a slash", known=user_id)
    return f"{keystone.name}/{domain.name}/{name}", keystone.prefix_domain


@dataclass(frozen=True, slots=True)
class KeystoneDirectory:
    """Reads domains and users' groups. Caches domains, but not groups."""

    keystone: Keystone
    client: KeystoneClient
    domains: Lookups[DomainBody] = field(default_factory=Lookups, repr=False)

    async def groups(self, user_id: str, domain: DomainReference) -> tuple[Group, ...]:
        """Return the groups of a user. `domain` is the user's domain. Raises Unauthenticated for an unknown user."""
        if not self.keystone.groups:
            return ()
        groups = await self.client.groups(user_id)
        if groups is None:
            raise Unauthenticated("the user is unknown to Keystone", known=user_id)
        others = sorted({group.domain_id for group in groups} - {domain.id})
        found = await asyncio.gather(*map(self.domain, others))
        by_id = {domain.id: domain} | {each.id: DomainReference(id=each.id, name=each.name) for each in found}
        return mapped_groups(self.keystone, user_id, groups, by_id)

    async def domain(self, domain_id: str) -> DomainBody:
        """Return a domain from the cache or from Keystone. Raises Unauthenticated if the domain does not exist."""

        async def ask() -> Found[DomainBody]:
            return Found(await self.current_domain(domain_id), self.keystone.cache.total_seconds())

        return await self.domains.get(hashlib.sha256(domain_id.encode()).digest(), ask)

    async def current_domain(self, domain_id: str) -> DomainBody:
        """Read a domain from Keystone, bypassing the cache. Raises Unauthenticated if the domain does not exist."""
        domain = await self.client.domain(domain_id)
        if domain is None or domain.id != domain_id:
            raise Unauthenticated("a domain is unknown to Keystone")
        return domain
