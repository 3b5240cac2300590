"""Reads objects from Keystone, with the service's own token."""

from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import quote

import structlog
from pydantic import BaseModel

from clustercert.authn.keystone.answers import (
    AssignmentsAnswer,
    CredentialAnswer,
    CredentialBody,
    DomainAnswer,
    DomainBody,
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
    parsed,
)
from clustercert.authn.keystone.connection import NO_CATALOG, Connection
from clustercert.authn.keystone.service_token import ServiceToken
from clustercert.http_client import Response
from clustercert.model.errors import CredentialUnverified, Unauthenticated
from clustercert.observability import metrics

RETRY_SECONDS = 10
M = TypeVar("M", bound=BaseModel)

logger = structlog.get_logger()


class KeystoneClient:
    """Reads objects from Keystone. None stands for an object that does not exist.

    All methods raise CredentialUnverified if there is no usable answer. The log then has the reason. They raise
    Unauthenticated if only the object in the answer is not usable: waiting would not help its user.
    """

    def __init__(self, connection: Connection, service_token: ServiceToken, name: str) -> None:
        self._connection = connection
        self._service_token = service_token
        self._name = name
        self._failure = ""

    async def token(self, text: str) -> TokenBody | None:
        """Validate a token. Returns None if it has expired or was revoked, or if its user is disabled."""
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
        """Read the names of a user's effective roles in a project: direct, by groups, inherited and implied."""
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
        # Don't rely on the filters in the query: Keystone ignores a filter that it does not know.
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
            # The service's own token was revoked, or the keys of Keystone were replaced.
            self._service_token.drop(own)
        if response is None or response.status == 404:  # noqa: PLR2004
            return None
        if response.status not in (200, 203):
            hint = ": the service's user lacks a right" if response.status == 403 else ""  # noqa: PLR2004
            raise UnusableAnswer(f"the response has status {response.status}{hint}")
        if subject is not None and response.headers.get("x-subject-token") != subject:
            raise UnusableAnswer("the answer is about another token")
        return response

    def _unusable(self, about: str, error: UnusableAnswer) -> CredentialUnverified:
        metrics.KEYSTONE_REQUESTS.labels("unusable").inc()
        # Anyone can cause this with an invented token, so the same reason is logged only once.
        if (reason := f"{about}: {error}") != self._failure:
            logger.warning("keystone answer not usable", authority=self._name, reason=reason)
        self._failure = reason
        return CredentialUnverified(
            "The identity service gave no usable answer. Try again in a moment.", retry_after=RETRY_SECONDS
        )
