"""What a request asks for, as kube-apiserver's authorizers see it."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

_VERBS = {
    "GET": "get",
    "HEAD": "get",
    "POST": "create",
    "PUT": "update",
    "PATCH": "patch",
    "DELETE": "delete",
}
_SUBRESOURCES_OF_NAMESPACES = {"status", "finalize"}
# "/apis/GROUP/VERSION/RESOURCE" and "/api/VERSION/RESOURCE": how many parts stand before the version's end.
_PREFIXES = {"apis": 3, "api": 2}


@dataclass(frozen=True, slots=True)
class Attributes:
    """One access; `resource` is empty for other paths.

    Attributes:
        verb: Kubernetes' word for a resource, the lower-case HTTP method for another path.
    """

    verb: str
    path: str = ""
    group: str = ""
    version: str = ""
    namespace: str = ""
    resource: str = ""
    subresource: str = ""
    name: str = ""
    field_selector: str = ""
    label_selector: str = ""

    @classmethod
    def of_request(cls, method: str, target: str) -> "Attributes":
        """Parse a request line's method and target."""
        url = urlsplit(target)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        parts = [part for part in url.path.split("/") if part]
        before = _PREFIXES.get(parts[0], 0) if parts else 0
        if not before or len(parts) <= before:
            return cls(method.lower(), url.path)
        group = parts[1] if parts[0] == "apis" else ""
        namespace, resource, name, subresource = _located(parts[before:])
        verb = _verb(method, name, query)
        field_selector = query.get("fieldSelector", "")
        if not name and field_selector.startswith("metadata.name="):
            name = field_selector.removeprefix("metadata.name=")
        return cls(
            verb=verb,
            path=url.path,
            group=group,
            version=parts[before - 1],
            namespace=namespace,
            resource=resource,
            subresource=subresource,
            name=name,
            field_selector=field_selector,
            label_selector=query.get("labelSelector", ""),
        )

    @classmethod
    def of_review(cls, spec: Mapping[str, Mapping[str, str]]) -> "Attributes":
        """From the spec of a SelfSubjectAccessReview."""
        if (other := spec.get("nonResourceAttributes")) is not None:
            return cls(other.get("verb", ""), other.get("path", ""))
        wanted = spec.get("resourceAttributes", {})
        names = ("verb", "group", "version", "namespace", "resource", "subresource", "name")
        return cls(**{name: str(wanted[name]) for name in names if name in wanted})

    @property
    def in_review(self) -> Mapping[str, object]:
        """The part of a SubjectAccessReview's spec, in Go's order of fields and without the empty ones."""
        if not self.resource:
            return {"nonResourceAttributes": {"path": self.path, "verb": self.verb}}
        fields: dict[str, object] = {
            "namespace": self.namespace,
            "verb": self.verb,
            "group": self.group,
            "version": self.version,
            "resource": self.resource,
            "subresource": self.subresource,
            "name": self.name,
            "fieldSelector": _requirements(self.field_selector),
            "labelSelector": _requirements(self.label_selector),
        }
        return {"resourceAttributes": {name: value for name, value in fields.items() if value}}

    @property
    def sentence(self) -> str:
        """The text after `User "…" cannot` in a refusal."""
        if not self.resource:
            return f'{self.verb} path "{self.path}"'
        where = f'in the namespace "{self.namespace}"' if self.namespace else "at the cluster scope"
        resource = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        return f'{self.verb} resource "{resource}" in API group "{self.group}" {where}'


def _located(parts: list[str]) -> tuple[str, str, str, str]:
    """Namespace, resource, name, subresource; a namespace's own name is its namespace too, as in Kubernetes."""
    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 1:
        namespace = parts[1]
        if len(parts) > 2 and parts[2] not in _SUBRESOURCES_OF_NAMESPACES:
            parts = parts[2:]
    padded = [*parts, "", ""]
    return namespace, padded[0], padded[1], padded[2]


def _verb(method: str, name: str, query: Mapping[str, str]) -> str:
    verb = _VERBS.get(method, method.lower())
    if verb == "get" and not name:
        return "watch" if query.get("watch") in {"1", "true"} else "list"
    return "deletecollection" if verb == "delete" and not name else verb


def _requirements(selector: str) -> Mapping[str, object] | None:
    if not selector:
        return None
    pairs = [part.replace("==", "=").split("=", 1) for part in selector.split(",")]
    return {
        "requirements": [
            {"key": pair[0], "operator": "In", "values": [pair[1]]}
            if len(pair) > 1
            else {"key": pair[0], "operator": "Exists"}
            for pair in pairs
        ]
    }
