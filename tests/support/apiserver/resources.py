"""The REST of the stored kinds: create, get, list, update, patch, delete."""

import base64
import contextlib
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from support.apiserver import kinds, protobuf
from support.apiserver import namespaces as namespace_controllers
from support.apiserver.admission import Write, admit
from support.apiserver.attributes import Attributes
from support.apiserver.certificate_requests import Signing
from support.apiserver.failures import Failure, JsonObject, no_such_path
from support.apiserver.identity import Identity
from support.apiserver.kinds import Kind
from support.apiserver.rbac import Rbac
from support.apiserver.service_accounts import SECRET_ACCOUNT, SECRET_TYPE, ServiceAccountTokens
from support.apiserver.storage import Document, Storage

_MERGED_AS = {"application/merge-patch+json", "application/strategic-merge-patch+json"}
_APPLIED_AS = "application/apply-patch+yaml"
# Source: k8s.io/apimachinery/pkg/util/rand/rand.go.
_GENERATED = "bcdfghjklmnpqrstvwxz2456789"
Allows = Callable[[Identity, Attributes], bool]


class Resources:
    """Handles authorized requests on the store."""

    def __init__(
        self,
        storage: Storage,
        rbac: Rbac,
        signing: Signing,
        tokens: ServiceAccountTokens,
        allows: Allows,
    ) -> None:
        self._storage = storage
        self._rbac = rbac
        self._signing = signing
        self._tokens = tokens
        self._allows = allows

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
        writing = self._writing(who, wanted, kind, dry_run=dry_run)
        if wanted.verb == "create":
            created = writing.create(parsed(body))
            if not dry_run:
                self._run_controllers(kind, created)
            return 201, created
        if wanted.verb == "update":
            document = parsed(body)
            approved = wanted.subresource == "approval"
            return 200, writing.approve(document) if approved else writing.replace(lambda _old: document)
        if wanted.verb == "patch":
            status, document = writing.patch(content_type.partition(";")[0].strip(), body)
            if status == HTTPStatus.CREATED and not dry_run:
                self._run_controllers(kind, document)
            return status, document
        if wanted.verb in {"delete", "deletecollection"}:
            return 200, self._delete(writing, kind, wanted, dry_run=dry_run)
        raise Failure(
            405, "MethodNotAllowed", "the server does not allow this method on the requested resource"
        )

    def _delete(self, writing: "_Writing", kind: Kind, wanted: Attributes, *, dry_run: bool) -> JsonObject:
        if wanted.verb == "delete":
            if kind is kinds.NAMESPACES and not dry_run:
                writing.admit_deletion(self._storage.get(kind, "", wanted.name))
                self._empty_namespace(wanted.name)
            return writing.delete()
        # Each object passes admission, without a name in the request. Source: k8s.io/apiserver,
        # pkg/endpoints/handlers/delete.go, and pkg/registry/rest/delete.go, AdmissionToValidateObjectDeleteFunc.
        for each in self._storage.all(kind, wanted.namespace):
            if _selected(each, wanted):
                writing.admit_deletion(each)
                self._storage.delete(kind, wanted.namespace, each["metadata"]["name"], keep=dry_run)
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}

    def request_token(self, who: Identity, wanted: Attributes, body: bytes) -> JsonObject:
        """Answer a TokenRequest. Raises Failure.

        Source of the order: kubernetes, pkg/registry/core/serviceaccount/storage/token.go.
        """
        self._storage.get(kinds.SERVICE_ACCOUNTS, wanted.namespace, wanted.name)
        document = parsed(body)
        self._writing(who, wanted, kinds.TOKEN_REQUESTS, dry_run=False).admit_creation(document)
        return self._tokens.requested(wanted.namespace, wanted.name, document.get("spec") or {})

    def _writing(self, who: Identity, wanted: Attributes, kind: Kind, *, dry_run: bool) -> "_Writing":
        return _Writing(
            self._storage, self._rbac, self._signing, who, wanted, kind, self._allows, dry_run=dry_run
        )

    def _run_controllers(self, kind: Kind, created: Document) -> None:
        """Do what the cluster's controllers do when they see a new object."""
        metadata = created["metadata"]
        if kind is kinds.NAMESPACES:
            for who, made_kind, document in namespace_controllers.created(metadata["name"]):
                wanted = Attributes(
                    "create", group="", version="v1", namespace=metadata["name"], resource=made_kind.plural
                )
                with contextlib.suppress(Failure):
                    self._writing(who, wanted, made_kind, dry_run=False).create(document)
        if kind is kinds.SECRETS and created.get("type") == SECRET_TYPE:
            account = (metadata.get("annotations") or {}).get(SECRET_ACCOUNT, "")
            token = self._tokens.secret_token(metadata["namespace"], account)
            data = {"token": base64.b64encode(token.encode()).decode()}
            self._storage.replace(
                kind, metadata["namespace"], metadata["name"], lambda old: {**old, "data": data}
            )

    def _empty_namespace(self, name: str) -> None:
        """Delete all objects in a namespace, as its controller does. Raises Failure, and it stays."""
        for kind in kinds.KINDS:
            if kind.namespaced and kind.stored:
                wanted = Attributes(
                    "deletecollection",
                    group=kind.group,
                    version="v1",
                    namespace=name,
                    resource=kind.plural,
                )
                writing = self._writing(
                    namespace_controllers.NAMESPACE_CONTROLLER, wanted, kind, dry_run=False
                )
                for each in self._storage.all(kind, name):
                    writing.admit_deletion(each)
                    self._storage.delete(kind, name, each["metadata"]["name"])

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
        allows: Allows,
        *,
        dry_run: bool,
    ) -> None:
        self._storage, self._rbac, self._signing, self._allows = storage, rbac, signing, allows
        self._who, self._wanted, self._kind, self._dry_run = who, wanted, kind, dry_run
        self._namespace = wanted.namespace if kind.namespaced else ""

    def create(self, document: Document) -> Document:
        if self._kind is kinds.CERTIFICATE_REQUESTS:
            document = self._signing.created(self._who, document)
        metadata = document.setdefault("metadata", {})
        if "generateName" in metadata and not metadata.get("name"):
            # Before validating admission. Source: k8s.io/apiserver/pkg/registry/rest/create.go, BeforeCreate.
            metadata["name"] = metadata["generateName"] + "".join(
                secrets.choice(_GENERATED) for _ in range(5)
            )
        if self._kind.namespaced:
            metadata.setdefault("namespace", self._namespace)
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

    def patch(self, content_type: str, body: bytes) -> tuple[int, Document]:
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

    def admit_creation(self, document: Document) -> None:
        """Pass an object that is not stored through admission. Raises Failure."""
        self._admit(document, None)

    def admit_deletion(self, old: Document) -> None:
        """Pass the deletion of an object through admission. Raises Failure."""
        self._admit(None, old)

    def delete(self) -> JsonObject:
        old = self._storage.get(self._kind, self._namespace, self._wanted.name)
        self._admit(None, old)
        self._storage.delete(self._kind, self._namespace, self._wanted.name, keep=self._dry_run)
        details = {"name": self._wanted.name, "kind": self._kind.plural, "uid": old["metadata"]["uid"]}
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}

    def _admit(self, new: Document | None, old: Document | None) -> None:
        if new is not None:
            self._rbac.check_escalation(self._who, self._kind, self._namespace, new)
        admit(
            self._storage, Write(self._who, self._wanted, self._kind, new, old, self._dry_run, self._allows)
        )


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
    # A comma in parentheses separates the values of `in`.
    return [part.strip() for part in re.split(r",(?![^(]*\))", selector) if part.strip()]


def _holds_one(part: str, values: Mapping[str, str]) -> bool:
    if (listed := re.fullmatch(r"(\S+) in \(([^)]*)\)", part)) is not None:
        return values.get(listed[1]) in {text.strip() for text in listed[2].split(",")}
    if "!=" in part:
        key, _, text = part.partition("!=")
        return values.get(key) != text
    key, equals, text = part.replace("==", "=").partition("=")
    return values.get(key) == text if equals else key in values
