"""Applies, finds and deletes objects of Kubernetes in a cluster, with an administrator's credential."""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

from clustercert.kube_api import (
    PAGE,
    UNEXPECTED_RESPONSE,
    ApiServerRefused,
    KubeApi,
    TooManyPages,
    pages,
    printable,
    segment,
)
from clustercert.model import JsonObject
from clustercert.model.errors import Conflict, RemoteFailed
from clustercert.model.kubernetes import INSTALLATION_LABEL, MANAGED_BY

# More than any cluster has. Without a limit, a hostile API server could send pages forever.
_MAX_OBJECTS = 200_000
_MAX_PAGES = _MAX_OBJECTS // PAGE
_MAX_MESSAGE = 300
# How often to repeat the write of an object that somebody else changes or creates at the same time.
_ATTEMPTS = 5

_CORE, _RBAC = "/api/v1", "/apis/rbac.authorization.k8s.io/v1"
_ADMISSION = "/apis/admissionregistration.k8s.io/v1"
# For each kind: the path of the API group, the plural name, and whether the objects are in namespaces.
_KINDS: Mapping[str, tuple[str, str, bool]] = {
    "Namespace": (_CORE, "namespaces", False),
    "ServiceAccount": (_CORE, "serviceaccounts", True),
    "ClusterRole": (_RBAC, "clusterroles", False),
    "ClusterRoleBinding": (_RBAC, "clusterrolebindings", False),
    "Role": (_RBAC, "roles", True),
    "RoleBinding": (_RBAC, "rolebindings", True),
    "ValidatingAdmissionPolicy": (_ADMISSION, "validatingadmissionpolicies", False),
    "ValidatingAdmissionPolicyBinding": (_ADMISSION, "validatingadmissionpolicybindings", False),
}


@dataclass(frozen=True, slots=True, order=True)
class ObjectReference:
    """Names an object in a cluster. `namespace` is empty for objects outside of namespaces."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {f'{self.namespace}/' if self.namespace else ''}{self.name}"

    @property
    def collection(self) -> str:
        """The path at which such objects are created."""
        return collection(self.kind, self.namespace)

    @property
    def path(self) -> str:
        """The path of the object."""
        return f"{self.collection}/{segment(self.name)}"


class ForeignObject(Conflict):
    """An object with a name that this service needs exists, but belongs to somebody else."""


class ClusterRefused(RemoteFailed):
    """The API server refused a request. The message has the server's reason, for the administrator of the cluster.

    Attributes:
        http_status: the HTTP status of the response.
    """

    def __init__(self, action: str, refused: ApiServerRefused) -> None:
        reason = printable(refused.server_message, _MAX_MESSAGE) or "no reason given"
        super().__init__(
            f"The cluster refused to {action} (HTTP {refused.http_status}): {reason}. Correct the cause, and run the "
            "command again."
        )
        self.http_status = refused.http_status


def reference_of(document: JsonObject, kind: str | None = None) -> ObjectReference:
    """Return the reference to an object. Raises RemoteFailed if the object has no name.

    Args:
        kind: the kind, if the document is an item of a list: such items have no kind.
    """
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise RemoteFailed(UNEXPECTED_RESPONSE)
    return ObjectReference(
        kind or str(document["kind"]), str(metadata.get("namespace") or ""), metadata["name"]
    )


def collection(kind: str, namespace: str = "") -> str:
    """Return the path of the objects of a kind: in a namespace, or everywhere."""
    prefix, plural, namespaced = _KINDS[kind]
    return (
        f"{prefix}/namespaces/{segment(namespace)}/{plural}"
        if namespaced and namespace
        else f"{prefix}/{plural}"
    )


def labels_of(document: JsonObject) -> Mapping[str, str]:
    """Return the labels of an object, which are empty if they are malformed."""
    metadata = document.get("metadata")
    labels = metadata.get("labels") if isinstance(metadata, dict) else None
    return labels if isinstance(labels, dict) else {}


async def find_object(api: KubeApi, reference: ObjectReference) -> JsonObject | None:
    """Return an object, or None if it does not exist. Raises ClusterRefused, RemoteFailed or Unavailable."""
    try:
        return await api.get(reference.path)
    except ApiServerRefused as refused:
        if refused.http_status == HTTPStatus.NOT_FOUND:
            return None
        raise ClusterRefused(f"show {reference}", refused) from refused


async def list_objects(api: KubeApi, kind: str, namespace: str = "", selector: str = "") -> list[JsonObject]:
    """List the objects of a kind, in a namespace or everywhere. Raises ClusterRefused, RemoteFailed or Unavailable."""
    found: list[JsonObject] = []
    parameters = {"labelSelector": selector} if selector else {}
    try:
        async for page in pages(api, collection(kind, namespace), parameters, _MAX_PAGES):
            items = page.get("items")
            if not isinstance(items, list) or not all(isinstance(each, dict) for each in items):
                raise RemoteFailed(UNEXPECTED_RESPONSE)
            found += items
    except TooManyPages as error:
        raise RemoteFailed(
            f"The cluster has more than {_MAX_OBJECTS} objects of the kind {kind}. Delete old objects."
        ) from error
    except ApiServerRefused as refused:
        raise ClusterRefused(f"list objects of the kind {kind}", refused) from refused
    return found


async def delete_object(api: KubeApi, reference: ObjectReference) -> None:
    """Delete an object if it exists. Raises ClusterRefused, RemoteFailed or Unavailable."""
    try:
        await api.delete(reference.path)
    except ApiServerRefused as refused:
        raise ClusterRefused(f"delete {reference}", refused) from refused


def require_ours(found: JsonObject, document: JsonObject) -> None:
    """Raise ForeignObject if an existing object is not from this service, or belongs to another installation."""
    reference, labels = reference_of(document), labels_of(found)
    if not MANAGED_BY.items() <= labels.items():
        raise ForeignObject(
            f"The cluster has the {reference} already, and it is not from clustercert: the label "
            f"{_shown(MANAGED_BY)} is missing. Delete this object, or register another cluster."
        )
    wanted, present = (labels_of(each).get(INSTALLATION_LABEL) for each in (document, found))
    if wanted is not None and wanted != present:
        raise ForeignObject(
            f"The {reference} belongs to another installation of clustercert ({present or 'unknown'}; this one is"
            f" {wanted}). Only one installation can use a cluster. Remove the cluster from the other installation"
            " first, with `clustercert kubernetes remove`."
        )


async def apply_object(api: KubeApi, document: JsonObject) -> Literal["created", "updated"]:
    """Create an object, or replace an existing one of this service. Keeps what others added to an existing object.

    Raises ForeignObject, ClusterRefused, RemoteFailed or Unavailable.
    """
    reference = reference_of(document)
    for attempt in range(1, _ATTEMPTS + 1):
        found = await find_object(api, reference)
        try:
            if found is None:
                await api.create(reference.collection, document)
                return "created"
            require_ours(found, document)
            if found.get("roleRef") != document.get("roleRef"):
                # Kubernetes does not allow changing the role of a binding.
                await delete_object(api, reference)
                continue
            await api.replace(reference.path, _merged(found, document))
        except ApiServerRefused as refused:
            if refused.http_status != HTTPStatus.CONFLICT or attempt == _ATTEMPTS:
                action = f"{'create' if found is None else 'change'} {reference}"
                raise ClusterRefused(action, refused) from refused
        else:
            return "updated"
    raise RemoteFailed(f"Another program keeps changing {reference}. Run the command later.")


def _merged(found: JsonObject, document: JsonObject) -> JsonObject:
    """Return an existing object with the fields of a document. Keeps further labels and annotations of the object."""
    metadata = dict(found["metadata"])  # type: ignore[call-overload] # checked by require_ours
    wanted = document["metadata"]
    for name in ("labels", "annotations"):
        if isinstance(wanted, dict) and wanted.get(name):
            metadata[name] = {**(metadata.get(name) or {}), **wanted[name]}
    return {**found, **document, "metadata": metadata}


def _shown(labels: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in labels.items())
