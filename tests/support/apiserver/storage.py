"""Objects in memory, in place of etcd and kube-apiserver's registry."""

import copy
import itertools
import re
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from support.apiserver import kinds
from support.apiserver.failures import Failure, conflict, invalid, not_found
from support.apiserver.kinds import Kind

Document = dict[str, Any]
Key = tuple[Kind, str, str]
"""A kind, a namespace or an empty text, a name."""

_DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_DATA_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
LARGEST_CONFIG_MAP = 1024 * 1024


class Storage:
    """Creates, replaces and deletes objects with resource versions and Kubernetes' validation."""

    def __init__(self) -> None:
        self._objects: dict[Key, Document] = {}
        self._versions = itertools.count(1)
        self._version = "0"
        self._lock = threading.RLock()

    def get(self, kind: Kind, namespace: str, name: str) -> Document:
        """Raises Failure (404)."""
        with self._lock:
            found = self._objects.get((kind, namespace, name))
            if found is None:
                raise not_found(kind.qualified, name)
            return copy.deepcopy(found)

    def all(self, kind: Kind, namespace: str = "") -> Sequence[Document]:
        """All objects of a kind by name, of one namespace or all."""
        with self._lock:
            keys = sorted(
                (key for key in self._objects if key[0] == kind and namespace in {"", key[1]}),
                key=lambda key: key[1:],
            )
            return [copy.deepcopy(self._objects[key]) for key in keys]

    @property
    def version(self) -> str:
        return self._version

    def create(self, kind: Kind, namespace: str, document: Document, *, keep: bool = True) -> Document:
        """Raises Failure (404 without its namespace, 409 if it exists, 422)."""
        metadata = document.setdefault("metadata", {})
        name = metadata.get("name") or ""
        _check(kind, namespace, document)
        with self._lock:
            if kind.namespaced and (kinds.NAMESPACES, "", namespace) not in self._objects:
                raise not_found("namespaces", namespace)
            if (kind, namespace, name) in self._objects:
                raise Failure(409, "AlreadyExists", f'{kind.qualified} "{name}" already exists')
            if kind.namespaced:
                metadata["namespace"] = namespace
            metadata["uid"] = str(uuid.uuid4())
            metadata["creationTimestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            if kind is kinds.NAMESPACES:
                _label_namespace(metadata)
                document |= {"spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}
            return self._put((kind, namespace, name), document, keep)

    def replace(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        change: Callable[[Document], Document],
        *,
        keep: bool = True,
    ) -> Document:
        """Raises Failure (404, 409 for another resource version, 422)."""
        with self._lock:
            old = self.get(kind, namespace, name)
            new = change(copy.deepcopy(old))
            wanted = (
                new.setdefault("metadata", {}).get("resourceVersion") or old["metadata"]["resourceVersion"]
            )
            if wanted != old["metadata"]["resourceVersion"]:
                raise conflict(kind.qualified, name)
            if new.get("roleRef") != old.get("roleRef"):
                raise invalid(kind.name, name, "roleRef: Invalid value: cannot change roleRef")
            new["metadata"] |= {
                key: old["metadata"][key]
                for key in ("name", "namespace", "uid", "creationTimestamp")
                if key in old["metadata"]
            }
            if kind is kinds.NAMESPACES:
                _label_namespace(new["metadata"])
            _check(kind, namespace, new)
            return self._put((kind, namespace, name), new, keep)

    def delete(self, kind: Kind, namespace: str, name: str, *, keep: bool = False) -> Document:
        """Raises Failure (404). Deletes the objects of a namespace too."""
        with self._lock:
            gone = self.get(kind, namespace, name)
            if not keep:
                del self._objects[kind, namespace, name]
                if kind is kinds.NAMESPACES:
                    for key in [key for key in self._objects if key[1] == name]:
                        del self._objects[key]
                self._version = str(next(self._versions))
            return gone

    def _put(self, key: Key, document: Document, keep: bool) -> Document:
        kind = key[0]
        document = {"apiVersion": kind.api_version, "kind": kind.name, **document}
        if keep:
            self._version = str(next(self._versions))
            document["metadata"]["resourceVersion"] = self._version
            self._objects[key] = copy.deepcopy(document)
        return document


def _label_namespace(metadata: Document) -> None:
    """Source: kubernetes, pkg/apis/core/v1/defaults.go, SetDefaults_Namespace."""
    metadata["labels"] = {**(metadata.get("labels") or {}), "kubernetes.io/metadata.name": metadata["name"]}


def _check(kind: Kind, namespace: str, document: Document) -> None:
    """Raises Failure if kube-apiserver's validation would reject it."""
    name = document["metadata"].get("name") or ""
    if document.get("kind", kind.name) != kind.name or document.get("apiVersion", kind.api_version) != (
        kind.api_version
    ):
        raise Failure(400, "BadRequest", "the object provided is of another kind than the path")
    if document["metadata"].get("namespace") not in {None, "", namespace}:
        raise Failure(400, "BadRequest", "the namespace of the object does not match the request's")
    legal = not set(name) & set("/%") if kind.group == kinds.RBAC else _DNS_NAME.fullmatch(name) is not None
    if not name or not legal:
        raise invalid(kind.name, name, f"metadata.name: Invalid value: {name!r}")
    if kind is kinds.CONFIG_MAPS:
        _check_data(name, document.get("data") or {})


def _check_data(name: str, data: Mapping[str, str]) -> None:
    for key, value in data.items():
        if not _DATA_KEY.fullmatch(key) or not isinstance(value, str):
            raise invalid("ConfigMap", name, f"data[{key}]: Invalid value")
    if sum(len(key) + len(value) for key, value in data.items()) > LARGEST_CONFIG_MAP:
        raise invalid("ConfigMap", name, "[]: Too long: may not be more than 1048576 bytes")
