"""Resolves the set-up values from the options, an existing folder or the defaults, in that order."""

from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import typer

from clustercert.cli.options import CommandError
from clustercert.cli.setup_client import read_client
from clustercert.cli.setup_folder import SetupFolder
from clustercert.cli.setup_options import CONTROL_PLANE_FOLDER, SetupOptions, bound_roles

if TYPE_CHECKING:
    from clustercert.kubernetes.setup.authorization import WebhookClient, WebhookConfig
    from clustercert.kubernetes.setup.previous import PreviousSetup
    from clustercert.kubernetes.setup.values import Setup
    from clustercert.model import Cluster
    from clustercert.model.choices import WebhookMode
    from clustercert.settings import Settings

SELF_MADE_CA = "tls-ca.pem"
_WEBHOOK_DEFAULTS = {
    "authorized_ttl": "5s",
    "timeout": "3s",
    "failure_policy": "NoOpinion",
}

T = TypeVar("T")


def self_made_ca(loaded: "Settings") -> Path | None:
    """Return the CA file that the service created for its self-signed certificate, or `None`."""
    path, given = (
        loaded.data_dir / SELF_MADE_CA,
        loaded.webhook.tls_certificate or loaded.server.tls_certificate,
    )
    return path if given is None and path.exists() else None


@dataclass(frozen=True, slots=True)
class SetupResolver:
    """Resolves the values for one folder.

    Attributes:
        kept: values from the existing folder that differ from the defaults, in the form of command-line options.
    """

    loaded: "Settings"
    given: SetupOptions
    folder: SetupFolder
    previous: "PreviousSetup"
    kept: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Check the options before the cluster is looked up. Raises typer.BadParameter or CommandError."""
        replace(self, kept=[]).service_url()
        bound_roles(self.loaded.policy.policy().groups, self.given.bind)

    def resolve(self, cluster: "Cluster", client_cas_pem: bytes) -> "Setup":
        """Resolve all values. The token is empty if the folder has none. Raises typer.BadParameter or CommandError."""
        from clustercert.kubernetes.setup.values import Setup

        webhook, before = self.previous.webhook, self.previous.authorization
        if webhook is not None and webhook.cluster_id != cluster.id:
            raise CommandError(
                f"{self.folder.out} was written for another cluster ({webhook.cluster_id}), with that cluster's "
                "values. Name another folder."
            )
        groups = self.loaded.policy.policy().groups
        service_url, service_ca_pem = self.service_url(), self._service_ca()
        webhook_config = self._webhook_config(cluster, groups)
        bound = self._bound(groups)
        return Setup(
            cluster=cluster,
            client_cas_pem=client_cas_pem,
            service_url=service_url,
            service_ca_pem=service_ca_pem,
            client=self._client(),
            token=(webhook.token if webhook else None) or "",
            folder=str(PurePosixPath(webhook_config.kubeconfig).parent),
            webhook=webhook_config,
            bound=bound,
            unbound=tuple(each for each in groups if each not in bound),
            audit=self._audit(),
            service_accounts=self._first("service_accounts", self.previous.service_accounts, "none"),
            certificate_requests=not webhook_config.uses_flags and self._certificate_requests(),
            previous_files=self.previous.files,
            previous_authorization=before.document if before else None,
            other_rbac=self.previous.other_rbac,
        )

    def _webhook_config(
        self,
        cluster: "Cluster",
        groups: tuple[str, ...],
    ) -> "WebhookConfig":
        from clustercert.kubernetes.setup.authorization import WebhookConfig
        from clustercert.kubernetes.setup.values import WEBHOOK
        from clustercert.policy.templates import groups_and_templates, is_template

        before = self.previous.authorization
        mode = self._first("mode", self._previous_mode(), None)
        minor = self._minor(mode or cluster.options.mode)
        defaults = _WEBHOOK_DEFAULTS | {"unauthorized_ttl": f"{cluster.options.unauthorized_ttl_seconds}s"}
        values: dict[str, Any] = {
            name: self._first(name, getattr(before, name, None), default)
            for name, default in defaults.items()
        }
        previous_folder = str(before.kubeconfig.parent) if before else None
        folder = self._first("control_plane_dir", previous_folder, CONTROL_PLANE_FOLDER)
        return WebhookConfig(
            mode=mode or cluster.options.mode,
            groups=groups,
            templates=tuple(
                sorted(filter(is_template, groups_and_templates(self.loaded.policy.policy().rules)))
            ),
            exemptions=cluster.options.exemptions,
            pins_components=cluster.options.pin_components,
            kubeconfig=str(PurePosixPath(folder) / WEBHOOK),
            minor=minor,
            **values,
        )

    def _first(self, name: str, previous: T | None, default: T) -> T:
        """Return an option's given value, else its previous one, else the default. Adds a previous value to `kept`."""
        given: T | None = getattr(self.given, name)
        if given is not None:
            return given
        if previous is None:
            return default
        if previous != default:
            self.kept.append(f"--{name.replace('_', '-')} {previous}")
        return previous

    def _previous_mode(self) -> "WebhookMode | None":
        from clustercert.kubernetes.setup.values import AUTHORIZATION

        before = self.previous.authorization
        if self.given.mode is not None or before is None or before.document is None:
            return None
        if before.mode is None:
            raise CommandError(
                f"The matchConditions in {self.folder.out / AUTHORIZATION} were not written by this command, "
                "which can't keep them. Use --mode to replace them."
            )
        return before.mode

    def _minor(self, mode: "WebhookMode") -> int | None:
        """Return the minor version of Kubernetes. Raises CommandError if an option needs a newer one."""
        from clustercert.kubernetes.setup.authorization import FIRST_WITH_CONFIGURATION, FIRST_WITH_HASHES
        from clustercert.kubernetes.setup.values import AUTHORIZATION

        given, before = self.given, self.previous.authorization
        minor = given.kubernetes_version
        if minor is None and before is not None and before.document is None:
            minor = FIRST_WITH_CONFIGURATION - 1
            self.kept.append("flags for Kubernetes 1.29 or older")
        if minor is None:
            if mode == "known-only" and before is not None and before.is_beta:
                raise CommandError(
                    f"{self.folder.out / AUTHORIZATION} has the apiVersion v1beta1, for Kubernetes 1.30 and 1.31. Mode "
                    "known-only needs 1.32 or newer. After an upgrade, add --kubernetes-version 1.32. Before it, use "
                    "--mode default, and `clustercert cluster update CLUSTER --webhook-mode default`."
                )
            return None
        if minor < FIRST_WITH_HASHES and mode == "known-only":
            raise CommandError(
                f"Mode known-only needs Kubernetes 1.32 or newer, not 1.{minor}. Use --mode default, and change the "
                "cluster's mode with `clustercert cluster update CLUSTER --webhook-mode default`."
            )
        if minor < FIRST_WITH_CONFIGURATION:
            for option, is_given in (
                ("--failure-policy Deny", given.failure_policy == "Deny"),
                ("--timeout", given.timeout is not None),
                ("--deny-certificate-requests", given.certificate_requests is True),
            ):
                if is_given:
                    raise CommandError(f"{option} is not possible before Kubernetes 1.30.")
        return minor

    def _client(self) -> "WebhookClient | None":
        """Return the API server's client certificate. Raises OSError, CommandError or typer.BadParameter."""
        certificate, key = self.given.webhook_client_certificate, self.given.webhook_client_key
        if certificate is not None and key is not None:
            return read_client(certificate, key)
        if certificate is not None or key is not None:
            raise typer.BadParameter(
                "Give both --webhook-client-certificate and --webhook-client-key.",
                param_hint="--webhook-client-certificate",
            )
        if self.previous.webhook is not None and self.previous.webhook.client is not None:
            self.kept.append("--webhook-client-certificate")
            return self.previous.webhook.client
        if self.loaded.webhook.client_ca is not None:
            raise CommandError(
                "webhook.client_ca is set, so an API server can't connect without a client certificate. Give one with "
                "--webhook-client-certificate and --webhook-client-key."
            )
        return None

    def _bound(self, groups: tuple[str, ...]) -> dict[str, str]:
        previous = self.previous.bound
        if previous is None:
            return bound_roles(groups, self.given.bind)
        bound, defaults = bound_roles(groups, self.given.bind, previous), bound_roles(groups, None)
        self.kept.extend(
            f"--bind {group}={role}"
            for group, role in previous.items()
            if bound[group] == role != defaults.get(group)
        )
        self.kept.extend(f"no binding of {group}" for group in defaults if group not in bound)
        if self.previous.other_rbac:
            self.kept.append("additions to rbac.yaml")
        return bound

    def _audit(self) -> bool:
        if self.given.audit is not None:
            return self.given.audit
        if self.previous.audit is False:
            self.kept.append("--no-audit")
        return self.previous.audit is not False

    def _certificate_requests(self) -> bool:
        if self.given.certificate_requests is not None:
            return self.given.certificate_requests
        if self.previous.certificate_requests is False:
            self.kept.append("--allow-certificate-requests")
        return self.previous.certificate_requests is not False

    def service_url(self) -> str:
        """Resolve the address of this service for the API server. Raises typer.BadParameter or CommandError."""
        from clustercert.kubernetes.setup.values import WEBHOOK

        if self.given.webhook_url is not None:
            return _base_url(self.given.webhook_url)
        if self.previous.webhook is not None:
            url = self.previous.webhook.service_url
            if urlsplit(url).scheme == "http":
                raise CommandError(f"{self.folder.out / WEBHOOK}: {_plain_http(url)}")
            return self._first("webhook_url", url, "")
        setting, public_url = "webhook.public_url", self.loaded.webhook.public_url
        if public_url is None:
            setting, public_url = "server.public_url", self.loaded.server.public_url
        if public_url is None:
            raise typer.BadParameter(
                "Give the address of this service for the control plane, or set webhook.public_url or "
                "server.public_url.",
                param_hint="--webhook-url",
            )
        if urlsplit(public_url).scheme == "http":
            raise CommandError(f"{setting}: {_plain_http(public_url)}")
        return _base_url(public_url)

    def _service_ca(self) -> bytes | None:
        """Return the CA of this service's certificate. Raises OSError, or InvalidRequest if the file is not PEM."""
        from clustercert.pki.certificates import chain_pem, parse_certificates

        webhook = self.previous.webhook
        if self.given.webhook_ca is None and webhook is not None:
            if webhook.ca_pem is not None:
                names = ", ".join(
                    each.subject.rfc4514_string() for each in parse_certificates(webhook.ca_pem)
                )
                self.kept.append(f"--webhook-ca ({names})")
            return webhook.ca_pem
        ca_file = self.given.webhook_ca or self_made_ca(self.loaded)
        # Parse and re-encode the file, which removes everything except certificates.
        return chain_pem(parse_certificates(ca_file.read_bytes())) if ca_file is not None else None


def _base_url(url: str) -> str:
    from clustercert.client.connection import ClientError, service_url

    try:
        base = service_url(url, plain_http=True)
    except ClientError as error:
        raise typer.BadParameter(
            "This is not the address of a service. Write it like https://clustercert.example.com, without a path.",
            param_hint="--webhook-url",
        ) from error
    if urlsplit(base).scheme == "http":
        raise typer.BadParameter(_plain_http(base), param_hint="--webhook-url")
    return base


def _plain_http(url: str) -> str:
    # Source: kubernetes/client-go, tools/clientcmd/client_config.go: IsConfigTransportTLS.
    return (
        f"an API server can't use {url}. It sends its token over https only, even on loopback: over http, every "
        "request would be rejected and revoked certificates would keep working unnoticed. Serve TLS "
        "(server.tls_certificate and server.tls_key, or `clustercert demo --tls`), and give the https address with "
        "--webhook-url."
    )
