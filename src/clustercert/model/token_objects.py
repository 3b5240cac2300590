"""The objects in a cluster of one credential that is a token: a service account and its bindings.

The names contain the credential number, so that admission policies can compare an object with its binding. Source of
the limits: Kubernetes, "Object Names and IDs", "Labels and Selectors".
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from clustercert.model import JsonObject
from clustercert.model.credentials import NUMBER_DIGITS
from clustercert.model.group_roles import MAX_BINDINGS, RoleGrant
from clustercert.model.kubernetes import CREDENTIAL_LABEL, INSTALLATION_LABEL, MANAGED_BY, USERS_NAMESPACE
from clustercert.model.times import rfc3339

USER_ID_ANNOTATION = "clustercert/user-id"
USER_NAME_ANNOTATION = "clustercert/user-name"
NOT_AFTER_ANNOTATION = "clustercert/not-after"
"""When the grant ends, RFC 3339."""

RBAC = "rbac.authorization.k8s.io"
ACCOUNTS_PATH = f"/api/v1/namespaces/{USERS_NAMESPACE}/serviceaccounts"
CLUSTER_ROLE_BINDINGS_PATH = f"/apis/{RBAC}/v1/clusterrolebindings"

MAX_SLUG = 40
_NO_SLUG = "user"
_NUMBER = f"[0-9a-f]{{{NUMBER_DIGITS}}}"
_NOT_IN_A_SLUG = re.compile("[^a-z0-9]+")

ACCOUNT_PATTERN = f"[a-z0-9]([-a-z0-9]{{0,{MAX_SLUG - 2}}}[a-z0-9])?-{_NUMBER}"
"""A regular expression, also in RE2, for the names of accounts. It must match the whole name."""

BINDING_PREFIX = "clustercert-"
"""The prefix of the names of bindings. The credential number follows the prefix."""

BINDING_PATTERN = f"{BINDING_PREFIX}{_NUMBER}-(1?[0-9])"
"""A regular expression, also in RE2, for the names of bindings. It must match the whole name."""

_ACCOUNT = re.compile(ACCOUNT_PATTERN, re.ASCII)
_BINDING = re.compile(BINDING_PATTERN, re.ASCII)


@dataclass(frozen=True, slots=True)
class TokenObjects:
    """Creates the documents of one credential's account and bindings.

    Attributes:
        installation: the id of this installation of the service, see `model.kubernetes.installation_id`.
        number: the credential number, 40 lower-case hex digits.
        user_id: the id of the user in this service.
        user_name: the name of the user in this service.
        not_after: when the grant ends.
    """

    installation: str
    number: str
    user_id: str
    user_name: str
    not_after: datetime

    @property
    def account(self) -> str:
        """The name of the service account."""
        return account_name(self.user_name, self.number)

    def account_document(self) -> JsonObject:
        """Return the ServiceAccount."""
        metadata = {"name": self.account, "namespace": USERS_NAMESPACE, **self._described()}
        return {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": metadata,
            "automountServiceAccountToken": False,
        }

    def binding_documents(self, roles: Sequence[RoleGrant]) -> list[JsonObject]:
        """Return a ClusterRoleBinding or RoleBinding for each role, in the order of the roles.

        Raises ValueError for more roles than a credential may have.
        """
        if len(roles) > MAX_BINDINGS:
            raise ValueError(f"A credential has at most {MAX_BINDINGS} bindings, not {len(roles)}.")
        return [self._binding(index, role) for index, role in enumerate(roles)]

    def _binding(self, index: int, role: RoleGrant) -> JsonObject:
        placed = {"namespace": role.namespace} if role.namespace else {}
        return {
            "apiVersion": f"{RBAC}/v1",
            "kind": "RoleBinding" if role.namespace else "ClusterRoleBinding",
            "metadata": {"name": binding_name(self.number, index), **placed, **self._described()},
            "roleRef": {"apiGroup": RBAC, "kind": role.kind, "name": role.name},
            "subjects": [{"kind": "ServiceAccount", "name": self.account, "namespace": USERS_NAMESPACE}],
        }

    def _described(self) -> JsonObject:
        return {
            "labels": labels(self.installation, self.number),
            "annotations": {
                USER_ID_ANNOTATION: self.user_id,
                USER_NAME_ANNOTATION: self.user_name,
                NOT_AFTER_ANNOTATION: rfc3339(self.not_after),
            },
        }


def user_slug(user_name: str) -> str:
    """Return the readable part of an account's name: 1 to 40 of `a-z0-9-`, without hyphens at the ends."""
    ascii_text = unicodedata.normalize("NFKD", user_name).encode("ascii", "ignore").decode().lower()
    return _NOT_IN_A_SLUG.sub("-", ascii_text).strip("-")[:MAX_SLUG].strip("-") or _NO_SLUG


def account_name(user_name: str, number: str) -> str:
    """Return the name of a credential's service account."""
    return f"{user_slug(user_name)}-{number}"


def account_number(name: str) -> str | None:
    """Return the credential number in the name of a service account, or None if the name is of another form."""
    return name[-NUMBER_DIGITS:] if _ACCOUNT.fullmatch(name) else None


def binding_name(number: str, index: int) -> str:
    """Return the name of a credential's binding. The index counts all bindings of the credential from 0."""
    return f"{BINDING_PREFIX}{number}-{index}"


def binding_number(name: str) -> str | None:
    """Return the credential number in the name of a binding, or None if the name is of another form."""
    found = _BINDING.fullmatch(name)
    return name[len(BINDING_PREFIX) :][:NUMBER_DIGITS] if found else None


def role_bindings_path(namespace: str) -> str:
    """Return the path of the RoleBindings in a namespace."""
    return f"/apis/{RBAC}/v1/namespaces/{namespace}/rolebindings"


def bindings_path(role: RoleGrant) -> str:
    """Return the path of the collection in which the binding of a role is created."""
    return role_bindings_path(role.namespace) if role.namespace else CLUSTER_ROLE_BINDINGS_PATH


def labels(installation: str, number: str) -> dict[str, str]:
    """Return the labels of a credential's account and bindings."""
    return {**MANAGED_BY, INSTALLATION_LABEL: installation, CREDENTIAL_LABEL: number}


def selector(installation: str, number: str | None = None) -> str:
    """Return a label selector for the objects of all credentials of an installation, or of one credential."""
    wanted = {**MANAGED_BY, INSTALLATION_LABEL: installation}
    if number is not None:
        wanted[CREDENTIAL_LABEL] = number
    return ",".join(f"{name}={value}" for name, value in wanted.items())
