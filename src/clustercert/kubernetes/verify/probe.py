"""Calls an API server with one client certificate: identity, permissions, admission."""

import contextlib
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from clustercert.kube_api import ApiServerRefused, KubeApi
from clustercert.model import JsonObject
from clustercert.model.errors import ClustercertError, RemoteFailed
from clustercert.model.kubernetes import CREDENTIAL_ID

# Source: staging/src/k8s.io/apiserver/pkg/authorization/metrics.
_WEBHOOK_CALLS = re.compile(
    r'^apiserver_authorization_webhook_evaluations_total\{[^}\n]*\bresult="(\w+)"[^}\n]*\} ([0-9.e+]+)$',
    re.MULTILINE,
)

UNAUTHORIZED = 401
FORBIDDEN = 403


class CheckFailed(ClustercertError):
    """A check found a fault.

    Attributes:
        advice: how to correct the fault.
    """

    def __init__(self, detail: str, advice: str) -> None:
        super().__init__(detail)
        self.advice = advice


class Denied(CheckFailed):
    """The API server accepted the certificate but denied the request."""


class NotAuthenticated(CheckFailed):
    """The API server rejected the certificate."""


class NoDecision(CheckFailed):
    """The API server could not decide, perhaps because failurePolicy is Deny and the webhook did not answer."""


@dataclass(frozen=True, slots=True)
class Permission:
    """A permission that a group should have; an asterisk stands for everything.

    Attributes:
        resource: the plural name, such as pods.
        api_group: empty for the core group.
        namespace: `None` for all namespaces.
    """

    verb: str
    resource: str
    api_group: str = ""
    namespace: str | None = None

    def __str__(self) -> str:
        if self == EVERYTHING:
            return "do anything"
        return f"{self.verb} {f'{self.resource}.{self.api_group}' if self.api_group else self.resource}"


EVERYTHING = Permission("*", "*", "*")
ROLE_PERMISSIONS = {
    "cluster-admin": EVERYTHING,
    "admin": Permission("create", "rolebindings", "rbac.authorization.k8s.io", "default"),
    "edit": Permission("create", "deployments", "apps", "default"),
    "view": Permission("list", "pods", "", "default"),
}
"""For each built-in ClusterRole of Kubernetes, a permission that the weaker ClusterRoles lack."""


@dataclass(frozen=True, slots=True)
class AuthenticatedUser:
    """The identity that an API server derives from a certificate.

    Attributes:
        credential_ids: the ids of the certificate; empty if the API server does not report ids.
    """

    username: str
    groups: frozenset[str]
    credential_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """Calls an API server with one certificate. Its methods raise CheckFailed."""

    api: KubeApi

    async def who_am_i(self) -> AuthenticatedUser:
        """Return the certificate's identity, like `kubectl auth whoami`. Every authenticated user has this right."""
        review: JsonObject = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        status = await self._review("/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
        user = _object(status.get("userInfo"))
        return AuthenticatedUser(
            username=str(user.get("username", "")),
            groups=frozenset(_strings(user.get("groups"))),
            credential_ids=_strings(_object(user.get("extra")).get(CREDENTIAL_ID)),
        )

    async def is_allowed(self, permission: Permission) -> bool:
        """Whether the certificate has a permission, like `kubectl auth can-i`."""
        attributes = {"verb": permission.verb, "resource": permission.resource, "group": permission.api_group}
        if permission.namespace is not None:
            attributes["namespace"] = permission.namespace
        review: JsonObject = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        status = await self._review("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        return status.get("allowed") is True

    async def _review(self, path: str, review: JsonObject) -> JsonObject:
        """Send a review, such as a SelfSubjectReview, and return the status in the response."""
        with _translate_errors():
            return _object((await self.api.create(path, review)).get("status"))

    async def new_denial(self) -> str:
        """Request a random path that no role grants by name, and for which the API server has no cached answer.

        Returns the API server's message if it denies the request, else an empty string.
        """
        try:
            with _translate_errors():
                await self.api.get(f"/apis/clustercert.invalid/v1/{secrets.token_hex(8)}")
        except Denied as denied:
            return denied.message
        except CheckFailed:
            pass
        return ""

    async def webhook_calls(self) -> Mapping[str, float] | None:
        """Return the number of authorization webhook calls by result, such as success. None if unreadable."""
        try:
            with _translate_errors():
                found = _WEBHOOK_CALLS.findall(await self.api.metrics())
        except CheckFailed:
            return None
        calls: dict[str, float] = {}
        for result, count in found:
            calls[result] = calls.get(result, 0) + float(count)
        return calls

    async def dry_run_write(self) -> None:
        """Create a namespace as a dry run. Admission policies also apply to dry runs."""
        metadata = {"name": "clustercert-verify"}
        namespace: JsonObject = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        with _translate_errors():
            await self.api.create("/api/v1/namespaces", namespace, {"dryRun": "All"})


_EXCEPTIONS: dict[int, type[CheckFailed]] = {
    UNAUTHORIZED: NotAuthenticated,
    FORBIDDEN: Denied,
    500: NoDecision,
}
_ADVICE = {
    UNAUTHORIZED: "The API server does not trust the client CA: add client-ca.pem of `clustercert kubernetes setup` "
    "to the file that --client-ca-file names, or check the API server's clock.",
    FORBIDDEN: "The webhook or your own rules deny the request: see the API server's message.",
    500: "With failurePolicy Deny, the webhook may not have responded: check that the API server reaches this service.",
}


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    """Turn errors in the `with` block into CheckFailed, with advice about the most frequent cause."""
    try:
        yield
    except ApiServerRefused as refused:
        advice = _ADVICE.get(refused.http_status, "See the API server's log.")
        exception = _EXCEPTIONS.get(refused.http_status, CheckFailed)
        raise exception(f"HTTP {refused.http_status} {refused.server_message}".strip(), advice) from refused
    except RemoteFailed as error:
        raise CheckFailed(
            error.message,
            "The cluster's registered CA is not the CA of the server at this address: correct the CA or the address "
            "with `clustercert cluster update`, --server-ca or --internal-url.",
        ) from error
    except ClustercertError as error:
        raise CheckFailed(
            error.message, "Check that this machine reaches the address of the cluster, or give --address."
        ) from error


def _object(value: object) -> JsonObject:
    return value if isinstance(value, dict) else {}


def _strings(value: object) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list) else ()
