"""The double's server: authentication, authorization, resources, and the control plane's files."""

import base64
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography import x509

from support.apiserver import audit, kinds
from support.apiserver.attributes import Attributes
from support.apiserver.authorization import (
    Authorizer,
    ConfigurationError,
    Decision,
    RbacAuthorizer,
    Verdict,
    WebhookSettings,
    decide,
    load,
)
from support.apiserver.authorization_flags import chain_of
from support.apiserver.certificate_requests import Signing
from support.apiserver.failures import AuthorizerFailed, Failure, JsonObject, no_such_path, unauthorized
from support.apiserver.files import Fixed, Watched, replace_file
from support.apiserver.identity import ANONYMOUS, MASTERS, ClientBundle, Identity
from support.apiserver.impersonation import impersonated, impersonations
from support.apiserver.peer_certificate import read
from support.apiserver.rbac import Rbac
from support.apiserver.resources import Resources, parsed
from support.apiserver.service_accounts import InvalidToken, ServiceAccountTokens
from support.apiserver.storage import Storage
from support.apiserver.transport import Listener, Request
from support.apiserver.webhook import Release, Webhook
from support.certificate_authority import Authority, kubeconfig_document

_log = logging.getLogger(__name__)
_HEALTH = {"/healthz", "/livez", "/readyz"}
PRESENTED = "X-Test-Client-Certificate"
"""Of tests alone: the DER, in base64, that stands for the bytes of the TLS client certificate.

OpenSSL refuses encodings in a handshake that Go takes. The signed content has to be that of the TLS certificate, whose
key the client has shown to have.
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """One request and its answer; `identity` is None where the answer was 401."""

    method: str
    path: str
    identity: Identity | None
    status: int


class ApiServer:
    """Serves on loopback from `with` to the end of the block.

    Attributes:
        url: `https://127.0.0.1:port`.
        server_ca: the PEM file of the CA that signed its own certificate.
        client_ca: the file of `--client-ca-file`; at first it holds the cluster's own CA alone.
        own_ca_pem: that CA, which signs `admin_kubeconfig`.
        seen: the requests so far.
        now: replace it to see a certificate expire on an open connection, or an answer of the webhook in the cache.
        storage: the objects.
        signing: the controller that signs CertificateSigningRequests.
        version: the `gitVersion` that it tells; None for the usual one.
        tells_credential_ids: whether users have credential ids, as from 1.32 on.
        tokens: of service accounts.
    """

    def __init__(self, folder: Path, release: Release = "1.32") -> None:
        self.release = release
        self.folder = folder
        serving = Authority("apiserver-double-ca")
        self.server_ca = folder / "server-ca.pem"
        self.server_ca.write_bytes(serving.certificate_pem)
        identity_file = folder / "server.pem"
        names = (x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("localhost"))
        identity_file.write_bytes(serving.server_identity_pem("kube-apiserver", names))
        self._own_ca = Authority("kubernetes")
        self.own_ca_pem = self._own_ca.certificate_pem
        self.client_ca = folder / "client-ca.pem"
        self.storage = Storage()
        for name in ("default", "kube-system"):
            self.storage.create(kinds.NAMESPACES, "", {"metadata": {"name": name}})
        self.trust(b"")
        self._bundle = Watched(
            self.client_ca, lambda path: ClientBundle(path.read_bytes()), (ValueError, OSError)
        )
        self.seen: list[Seen] = []
        self.now: Callable[[], datetime] = lambda: datetime.now(UTC)
        self.tells_credential_ids = True
        self.version: str | None = None
        self._rbac = Rbac(self.storage)
        self.signing = Signing(self.storage, self._own_ca, lambda: self.now())  # noqa: PLW0108 - it may be replaced later
        self._chain: Watched[Sequence[Authorizer]] | Fixed[Sequence[Authorizer]] | None = None
        self.webhooks: list[Webhook] = []
        self._sinks: list[Callable[[Mapping[str, Any]], None]] = []
        self._listener = Listener(identity_file, self._answer)
        self.url = f"https://127.0.0.1:{self._listener.server_address[1]}"
        self.tokens = ServiceAccountTokens(self.storage, self.url, lambda: self.now())  # noqa: PLW0108 - it may be replaced later
        self._resources = Resources(self.storage, self._rbac, self.signing, self.tokens, self._allows)

    def trust(self, client_cas_pem: bytes) -> None:
        """Replace the client-CA bundle by the cluster's own CA and these, by rename."""
        replace_file(self.client_ca, self.own_ca_pem + client_cas_pem)
        # kube-apiserver writes the bundle into this ConfigMap, from which extension API servers read it.
        name, data = "extension-apiserver-authentication", {"client-ca-file": self.client_ca.read_text()}
        document = {"metadata": {"name": name}, "data": data}
        if name in {each["metadata"]["name"] for each in self.storage.all(kinds.CONFIG_MAPS, "kube-system")}:
            self.storage.replace(kinds.CONFIG_MAPS, "kube-system", name, lambda _old: document)
        else:
            self.storage.create(kinds.CONFIG_MAPS, "kube-system", document)

    def bind(self, group: str, role: str) -> None:
        """Create a ClusterRoleBinding."""
        self._rbac.bind(f"{group}:{role}", role, (group,))

    def add_namespace(self, name: str) -> None:
        """Create a namespace if it is missing."""
        if name not in {each["metadata"]["name"] for each in self.storage.all(kinds.NAMESPACES)}:
            self.storage.create(kinds.NAMESPACES, "", {"metadata": {"name": name}})

    def add_service_account(self, namespace: str, name: str) -> str:
        """Create a service account, and its namespace if it is missing. Returns its uid."""
        self.add_namespace(namespace)
        made = self.storage.create(kinds.SERVICE_ACCOUNTS, namespace, {"metadata": {"name": name}})
        return str(made["metadata"]["uid"])

    def authorize_with(self, configuration: Path) -> None:
        """`--authorization-config`: read now and whenever it is replaced. Raises ConfigurationError."""
        self._chain = Watched(
            configuration, lambda path: load(path, self._rbac, self._new_webhook), (ConfigurationError,)
        )

    def authorize_with_flags(self, flags: Mapping[str, str]) -> None:
        """Authorize as an API server before 1.30, which also tells no credential ids. Raises ConfigurationError."""
        chain = chain_of(flags, self._rbac, self._new_webhook)
        self._chain = Fixed(chain)
        self.tells_credential_ids = False

    def send_audit_events(self, folder: Path) -> None:
        """To where the kubeconfig that `clustercert kubernetes setup` wrote says."""
        self.audit_to_webhook(folder / "audit-webhook.kubeconfig")

    def serve(self) -> None:
        """Does nothing: it serves already."""

    def audit_to_webhook(self, kubeconfig: Path) -> audit.AuditWebhook:
        """`--audit-webhook-config-file`."""
        sink = audit.AuditWebhook(kubeconfig)
        self._sinks.append(sink)
        return sink

    def audit_to_file(self, path: Path) -> None:
        """`--audit-log-path`."""
        self._sinks.append(audit.AuditLog(path))

    @property
    def complaints(self) -> Sequence[str]:
        """The errors of invalid files."""
        return [*self._bundle.complaints, *(self._chain.complaints if self._chain else ())]

    @property
    def webhook_calls(self) -> int:
        """How often the authorization webhook was called, over every configuration so far."""
        return sum(webhook.calls for webhook in self.webhooks)

    def kubeconfig(self, username: str, groups: Sequence[str], name: str | None = None) -> Path:
        """A kubeconfig with a certificate of the cluster's own CA, unknown to the service."""
        return self.kubeconfig_of(self._own_ca.client_identity_pem(username, groups), name or username)

    def admin_kubeconfig(self) -> Path:
        """A kubeconfig for system:masters, like kubeadm's super-admin.conf."""
        return self.kubeconfig("kubernetes-admin", (MASTERS,))

    def kubeconfig_of(self, identity_pem: bytes, name: str) -> Path:
        """A kubeconfig with this key and certificate."""
        path = self.folder / f"{name}.kubeconfig"
        path.touch(mode=0o600)
        path.write_bytes(kubeconfig_document(self.url, self.server_ca.read_bytes(), identity_pem))
        return path

    def __enter__(self) -> Self:
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.stop()
        for sink in self._sinks:
            if isinstance(sink, audit.AuditWebhook):
                sink.close()
        for webhook in self.webhooks:
            webhook.close()

    def _new_webhook(self, settings: WebhookSettings) -> Webhook:
        webhook = Webhook(settings, self.release, lambda: self.now())  # noqa: PLW0108 - it may be replaced later
        self.webhooks.append(webhook)
        return webhook

    def _answer(self, request: Request) -> tuple[int, JsonObject | str]:
        received = datetime.now(UTC)
        wanted = Attributes.of_request(request.method, request.target)
        who: Identity | None = None
        verdict: Verdict | None = None
        document: JsonObject | str
        try:
            who = self._authenticated(request)
            for act in impersonations(request.headers):
                self._authorized(who, act)
            acting = impersonated(request.headers) or who
            verdict = self._authorized(acting, wanted)
            status, document = self._done(acting, wanted, request)
        except Failure as failure:
            status, document = failure.code, failure.status
        except AuthorizerFailed as failure:
            status, document = 500, f'Internal Server Error: "{request.target}": {failure}\n'
        except (KeyError, TypeError, ValueError) as error:
            _log.exception("the double can't read a request")
            status, document = 400, Failure(400, "BadRequest", repr(error)).status
        self.seen.append(Seen(request.method, wanted.path, who, status))
        agent = request.headers.get("user-agent", [""])[0]
        happened = audit.event(who, wanted, request.target, agent, status, verdict, received)
        for sink in self._sinks:
            sink(happened)
        return status, document

    def _authenticated(self, request: Request) -> Identity:
        """The caller; anonymous without a credential. Raises Failure (401) for an invalid one."""
        if not request.chain:
            scheme, _, token = request.headers.get("authorization", [""])[0].partition(" ")
            try:
                return self.tokens.accept(token).who if scheme.lower() == "bearer" else ANONYMOUS
            except InvalidToken as error:
                raise unauthorized() from error
        chain, presented_der = request.chain, None
        if headers := request.headers.get(PRESENTED.lower()):
            try:
                presented_der = base64.b64decode(headers[0], validate=True)
                leaf = read(presented_der).certificate
            except ValueError as error:
                raise unauthorized() from error
            if leaf.tbs_certificate_bytes != chain[0].tbs_certificate_bytes:
                raise unauthorized()
            chain = [leaf, *chain[1:]]
        if not self._bundle.value.believes(chain, self.now()):
            raise unauthorized()
        who = Identity.of(chain[0], presented_der)
        return who if self.tells_credential_ids else replace(who, credential_id=None)

    def _decide(self, who: Identity, wanted: Attributes) -> Verdict:
        chain = (RbacAuthorizer(self._rbac),) if self._chain is None else self._chain.value
        return decide(chain, who, wanted)

    def _allows(self, who: Identity, wanted: Attributes) -> bool:
        return self._decide(who, wanted).decision is Decision.ALLOW

    def _authorized(self, who: Identity, wanted: Attributes) -> Verdict:
        """Raises Failure (403), or AuthorizerFailed."""
        verdict = self._decide(who, wanted)
        if verdict.decision is Decision.ALLOW:
            return verdict
        if verdict.error is not None:
            raise AuthorizerFailed(verdict.error)
        what = "forbidden"
        if wanted.resource:
            resource = f"{wanted.resource}.{wanted.group}" if wanted.group else wanted.resource
            what = f'{resource} "{wanted.name}" is forbidden' if wanted.name else f"{resource} is forbidden"
        reason = f": {verdict.reason}" if verdict.reason else ""
        message = f'{what}: User "{who.username}" cannot {wanted.sentence}{reason}'
        raise Failure(403, "Forbidden", message)

    def _done(self, who: Identity, wanted: Attributes, request: Request) -> tuple[int, JsonObject | str]:
        if not wanted.resource:
            if request.method == "GET" and wanted.path == "/metrics":
                return 200, "".join(webhook.metrics for webhook in self.webhooks)
            if request.method == "GET" and wanted.path in _HEALTH:
                return 200, {"status": "ok"}
            document = None
            if request.method == "GET":
                document = kinds.discovery(wanted.path) or self.tokens.document(wanted.path)
                if wanted.path == "/version" and self.version is not None:
                    document = kinds.VERSION | {"gitVersion": self.version}
            if document is None:
                raise no_such_path()
            return 200, document
        if wanted.verb == "create" and (computed := self._computed(who, wanted, request.body)) is not None:
            return 201, computed
        content_type = request.headers.get("content-type", ["application/json"])[0]
        return self._resources.answer(who, wanted, request.target, content_type, request.body)

    def _computed(self, who: Identity, wanted: Attributes, body: bytes) -> JsonObject | None:
        """The answer to a review or a TokenRequest, which is not stored; None for other resources."""
        if wanted.resource == kinds.SELF_SUBJECT_REVIEWS.plural:
            return _review(kinds.SELF_SUBJECT_REVIEWS, {}, {"userInfo": who.user_info})
        if wanted.resource == kinds.SELF_ACCESS_REVIEWS.plural:
            spec = parsed(body)["spec"]
            return _review(kinds.SELF_ACCESS_REVIEWS, spec, self._access(who, spec))
        if wanted.resource == kinds.SELF_RULES_REVIEWS.plural:
            spec = parsed(body)["spec"]
            # Source: kubernetes, pkg/registry/authorization/selfsubjectrulesreview/rest.go: a namespace is required.
            if not spec.get("namespace"):
                raise Failure(400, "BadRequest", "no namespace on request")
            return _review(kinds.SELF_RULES_REVIEWS, spec, self._rbac.rules_review(who, spec["namespace"]))
        if wanted.resource == kinds.TOKEN_REVIEWS.plural:
            spec = parsed(body)["spec"]
            return _review(kinds.TOKEN_REVIEWS, spec, self.tokens.review(spec))
        if (wanted.resource, wanted.subresource) == (kinds.SERVICE_ACCOUNTS.plural, "token"):
            return self._resources.request_token(who, wanted, body)
        return None

    def _access(self, who: Identity, spec: Mapping[str, Mapping[str, str]]) -> JsonObject:
        """The status of a SelfSubjectAccessReview."""
        verdict = self._decide(who, Attributes.of_review(spec))
        status: dict[str, object] = {"allowed": verdict.decision is Decision.ALLOW}
        if verdict.decision is Decision.DENY:
            status["denied"] = True
        if verdict.reason:
            status["reason"] = verdict.reason
        if verdict.error is not None:
            status["evaluationError"] = verdict.error
        return status


def _review(kind: kinds.Kind, spec: JsonObject, status: JsonObject) -> JsonObject:
    review: dict[str, object] = {
        "kind": kind.name,
        "apiVersion": kind.api_version,
        "metadata": {"creationTimestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")},
    }
    return review | ({"spec": spec} if spec else {}) | {"status": status}
