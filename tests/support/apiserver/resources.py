"""The REST of the stored kinds: create, get, list, update, patch, delete."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from support.apiserver import kinds, protobuf
from support.apiserver.admission import Write, admit
from support.apiserver.attributes import Attributes
from support.apiserver.certificate_requests import Signing
from support.apiserver.failures import Failure, JsonObject, no_such_path
from support.apiserver.identity import Identity
from support.apiserver.kinds import Kind
from support.apiserver.rbac import Rbac
from support.apiserver.storage import Document, Storage

_MERGED_AS = {"application/merge-patch+json", "application/strategic-merge-patch+json"}
_APPLIED_AS = "application/apply-patch+yaml"


class Resources:
    """Handles authorized requests on the store."""

    def __init__(self, storage: Storage, rbac: Rbac, signing: Signing) -> None:
        self._storage = storage
        self._rbac = rbac
        self._signing = signing

    def answer(
        self, who: Identity, wanted: Attributes, target: str, content_type: str, body: bytes
    ) -> tuple[int, JsonObject]:
        """Status and object. Raises Failure."""
        kind = _served_kind(wanted)
        query = {key: values[-1] for key, values in parse_qs(urlsplit(target).query).items()}
        if wanted.verb == "get":
            return 200, self._storage.get(kind, self._namespace(kind, wanted), wanted.name)
        if wanted.verb == "list":
            return 200, self._listed(kind, wanted, query)
        dry_run = query.get("dryRun") == "All"
        writing = _Writing(self._storage, self._rbac, self._signing, who, wanted, kind, dry_run=dry_run)
        if wanted.verb == "create":
            return 201, writing.create(parsed(body))
        if wanted.verb == "update":
            document = parsed(body)
            approved = wanted.subresource == "approval"
            return 200, writing.approve(document) if approved else writing.replace(lambda _old: document)
        if wanted.verb == "patch":
            return writing.patch(content_type.partition(";")[0].strip(), body)
        if wanted.verb == "delete":
            return 200, writing.delete()
        raise Failure(
            405, "MethodNotAllowed", "the server does not allow this method on the requested resource"
        )

    @staticmethod
    def _namespace(kind: Kind, wanted: Attributes) -> str:
        return wanted.namespace if kind.namespaced else ""

    def _listed(self, kind: Kind, wanted: Attributes, query: Mapping[str, str]) -> JsonObject:
        found = [
            document
            for document in self._storage.all(kind, self._namespace(kind, wanted))
            if _selected(document, wanted)
        ]
        start, limit = int(query.get("continue") or "0"), int(query.get("limit") or "0")
        page = found[start : start + limit] if limit else found[start:]
        metadata: dict[str, object] = {"resourceVersion": self._storage.version}
        if left := len(found) - start - len(page):
            metadata |= {"continue": str(start + len(page)), "remainingItemCount": left}
        return {
            "kind": f"{kind.name}List",
            "apiVersion": kind.api_version,
            "metadata": metadata,
            "items": page,
        }


class _Writing:
    """One write: escalation, admission, store, in that order."""

    def __init__(
        self,
        storage: Storage,
        rbac: Rbac,
        signing: Signing,
        who: Identity,
        wanted: Attributes,
        kind: Kind,
        *,
        dry_run: bool,
    ) -> None:
        self._storage, self._rbac, self._signing = storage, rbac, signing
        self._who, self._wanted, self._kind, self._dry_run = who, wanted, kind, dry_run
        self._namespace = wanted.namespace if kind.namespaced else ""

    def create(self, document: Document) -> Document:
        if self._kind is kinds.CERTIFICATE_REQUESTS:
            document = self._signing.created(self._who, document)
        self._admit(document, None)
        return self._storage.create(self._kind, self._namespace, document, keep=not self._dry_run)

    def replace(self, change: Callable[[Document], Document]) -> Document:
        def changed(old: Document) -> Document:
            new = change(old)
            self._admit(new, old)
            return new

        return self._storage.replace(
            self._kind, self._namespace, self._wanted.name, changed, keep=not self._dry_run
        )

    def approve(self, document: Document) -> Document:
        """Write the conditions of a request; then the controller signs."""
        signer = self._storage.get(self._kind, "", self._wanted.name)["spec"]["signerName"]
        names = (signer, f"{signer.partition('/')[0]}/*")
        asked = [
            Attributes("approve", group=self._kind.group, resource="signers", name=name) for name in names
        ]
        if not any(self._rbac.allows(self._who, each) for each in asked):
            said = f'user not permitted to approve requests with signerName "{signer}"'
            resource = f'{self._kind.qualified} "{self._wanted.name}"'
            raise Failure(403, "Forbidden", f"{resource} is forbidden: {said}")
        answered = self.replace(lambda old: _approved(old, document))
        if not self._dry_run:
            self._signing.sign(self._wanted.name)
        return answered

    def patch(self, content_type: str, body: bytes) -> tuple[int, JsonObject]:
        """Strategic merges are plain ones here: no list is merged. Applying creates what is missing."""
        if content_type not in {*_MERGED_AS, _APPLIED_AS}:
            raise Failure(
                415,
                "UnsupportedMediaType",
                f"the body of the request was in an unknown format: {content_type}",
            )
        patch = yaml.safe_load(body)
        try:
            return 200, self.replace(lambda old: _merged(old, patch))
        except Failure as failure:
            if content_type != _APPLIED_AS or failure.code != 404:
                raise
            return 201, self.create(patch)

    def delete(self) -> JsonObject:
        old = self._storage.get(self._kind, self._namespace, self._wanted.name)
        self._admit(None, old)
        self._storage.delete(self._kind, self._namespace, self._wanted.name, keep=self._dry_run)
        details = {"name": self._wanted.name, "kind": self._kind.plural, "uid": old["metadata"]["uid"]}
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}

    def _admit(self, new: Document | None, old: Document | None) -> None:
        if new is not None:
            self._rbac.check_escalation(self._who, self._kind, self._namespace, new)
        admit(self._storage, Write(self._who, self._wanted, self._kind, new, old, self._dry_run))


def parsed(body: bytes) -> Document:
    """An object in JSON or protobuf. Raises Failure (400)."""
    try:
        document = protobuf.document(body) if body.startswith(protobuf.MAGIC) else json.loads(body)
    except ValueError as error:
        raise Failure(400, "BadRequest", "the object provided is unrecognized") from error
    if not isinstance(document, dict):
        raise Failure(400, "BadRequest", "the object provided is unrecognized")
    return document


def _served_kind(wanted: Attributes) -> Kind:
    """Raises Failure (404)."""
    kind = kinds.BY_RESOURCE.get((wanted.group, wanted.resource))
    if kind is None or not kind.stored or wanted.version != "v1":
        raise no_such_path()
    if wanted.subresource and (kind is not kinds.CERTIFICATE_REQUESTS or wanted.subresource != "approval"):
        raise no_such_path()
    if kind.namespaced and not wanted.namespace and wanted.verb != "list":
        raise no_such_path()
    return kind


def _approved(old: Document, new: Document) -> Document:
    """An update of the subresource `approval` changes only the conditions."""
    conditions = (new.get("status") or {}).get("conditions") or []
    return {**old, "status": {**(old.get("status") or {}), "conditions": conditions}}


def _merged(old: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    result = dict(old) if isinstance(old, dict) else {}
    for key, item in patch.items():
        if item is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), item)
    return result


def _selected(document: Document, wanted: Attributes) -> bool:
    labels = document["metadata"].get("labels") or {}
    fields = {f"metadata.{name}": document["metadata"].get(name, "") for name in ("name", "namespace")}
    return _holds(wanted.label_selector, labels) and _holds(wanted.field_selector, fields)


def _holds(selector: str, values: Mapping[str, str]) -> bool:
    return all(_holds_one(part, values) for part in _parts(selector))


def _parts(selector: str) -> Sequence[str]:
    return [part.strip() for part in selector.split(",") if part.strip()]


def _holds_one(part: str, values: Mapping[str, str]) -> bool:
    if "!=" in part:
        key, _, text = part.partition("!=")
        return values.get(key) != text
    key, equals, text = part.replace("==", "=").partition("=")
    return values.get(key) == text if equals else key in values
