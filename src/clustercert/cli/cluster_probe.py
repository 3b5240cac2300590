"""What a certificate's holder can ask an API server about themselves."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from clustercert.errors import ClustercertError
from clustercert.kubeapi import KubeApi, Refused
from clustercert.manifests import CREDENTIAL_ID
from clustercert.manifests.admission import POLICY
from clustercert.model import JsonObject

UNAUTHORIZED = 401
FORBIDDEN = 403
POLICIES_PATH = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"


class Failed(ClustercertError):
    """Something is not as it should be.

    Attributes:
        advice: what to do about it.
    """

    def __init__(self, detail: str, advice: str) -> None:
        super().__init__(detail)
        self.advice = advice


class Denied(Failed):
    """The API server knows who asks, and forbids it."""

    @property
    def by_admission_policy(self) -> bool:
        """Whether it was the policy that reads what is revoked, and no authorizer."""
        return f"ValidatingAdmissionPolicy '{POLICY}'" in self.message


class NotAuthenticated(Failed):
    """The API server does not accept the certificate."""


@dataclass(frozen=True, slots=True)
class Right:
    """Something that a group should be allowed; an asterisk is everything.

    Attributes:
        resource: its plural.
        api_group: empty for the core group.
        namespace: None for all of them.
    """

    verb: str
    resource: str
    api_group: str = ""
    namespace: str | None = None

    def __str__(self) -> str:
        if self == EVERYTHING:
            return "do anything"
        return f"{self.verb} {f'{self.resource}.{self.api_group}' if self.api_group else self.resource}"


EVERYTHING = Right("*", "*", "*")
RIGHTS = {
    "cluster-admin": EVERYTHING,
    "admin": Right("create", "rolebindings", "rbac.authorization.k8s.io", "default"),
    "edit": Right("create", "deployments", "apps", "default"),
    "view": Right("list", "pods", "", "default"),
}
"""One right that tells each of Kubernetes' own ClusterRoles from those below it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom an API server takes somebody for.

    Attributes:
        credential_ids: which credential it was, where the API server says that.
    """

    username: str
    groups: frozenset[str]
    credential_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """An API server, asked with one certificate. Its methods raise Denied or Failed."""

    api: KubeApi

    async def who_am_i(self) -> Identity:
        """What `kubectl auth whoami` shows; every authenticated user may ask."""
        review: JsonObject = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        with _answered():
            said = await self.api.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
        user = _object(_object(said.get("status")).get("userInfo"))
        return Identity(
            username=str(user.get("username", "")),
            groups=frozenset(_strings(user.get("groups"))),
            credential_ids=_strings(_object(user.get("extra")).get(CREDENTIAL_ID)),
        )

    async def may(self, right: Right) -> bool:
        """What `kubectl auth can-i` shows."""
        attributes = {"verb": right.verb, "resource": right.resource, "group": right.api_group}
        if right.namespace is not None:
            attributes["namespace"] = right.namespace
        review: JsonObject = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        with _answered():
            said = await self.api.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        return _object(said.get("status")).get("allowed") is True

    async def try_to_write(self) -> None:
        """Go through admission with a namespace that is not made."""
        namespace: JsonObject = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": "clustercert-verify"},
        }
        with _answered():
            await self.api.create("/api/v1/namespaces", namespace, {"dryRun": "All"})

    async def admission_policy(self) -> JsonObject:
        """The policy that reads what is revoked, as it stands in the cluster."""
        with _answered():
            return await self.api.get(f"{POLICIES_PATH}/{POLICY}")


_KINDS: dict[int, type[Failed]] = {UNAUTHORIZED: NotAuthenticated, FORBIDDEN: Denied}
_ADVICE = {
    UNAUTHORIZED: "Append the output of `clustercert kubernetes ca-bundle` to the API server's --client-ca-file.",
    FORBIDDEN: "The webhook denies it, or rules of your own do: see what the API server says.",
    500: "The API server may have got no answer from the webhook, under failurePolicy Deny: see if it reaches this "
    "service.",
}


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    """Raise Denied or Failed for whatever is no answer, with what that means most often."""
    try:
        yield
    except Refused as refused:
        advice = _ADVICE.get(refused.http_status, "See the API server's log.")
        kind = _KINDS.get(refused.http_status, Failed)
        raise kind(f"HTTP {refused.http_status} {refused.said}".strip(), advice) from refused
    except ClustercertError as error:
        raise Failed(
            error.message, "Check the address and the CA of the cluster, or say --address."
        ) from error


def _object(value: object) -> JsonObject:
    return value if isinstance(value, dict) else {}


def _strings(value: object) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list) else ()
