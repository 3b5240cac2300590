"""What a set-up is written from: the options, then what an earlier folder says, then the defaults."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import typer

from clustercert.cli.guarding import WebhookMode
from clustercert.cli.setup_folder import SetupFolder
from clustercert.cli.setup_options import (
    CONTROL_PLANE_FOLDER,
    FailurePolicy,
    SetupError,
    SetupOptions,
    bound_roles,
)

if TYPE_CHECKING:
    # The command loads the settings and the manifests only when it is run.
    from clustercert.manifests.previous import PreviousAuthorization, PreviousSetup
    from clustercert.settings import Settings

SELF_MADE_CA = "tls-ca.pem"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Choices:
    """What the files say.

    Attributes:
        service_url: where the API server reaches this service, no slash at the end.
        service_ca_pem: None for a certificate that the control plane's operating system trusts.
        mode: None for the cluster's own.
        groups: of the policy.
        more_groups: to ask about besides.
        bound: the ClusterRole of each group.
        kept: the options that stand for what was kept from an earlier folder, where it isn't the default.
    """

    service_url: str
    service_ca_pem: bytes | None
    mode: WebhookMode | None
    failure_policy: FailurePolicy
    authorized_ttl: str
    unauthorized_ttl: str
    timeout: str
    control_plane_dir: str
    groups: tuple[str, ...]
    more_groups: tuple[str, ...]
    bound: dict[str, str]
    audit: bool
    kept: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Kept:
    """Picks values, and remembers which ones an earlier folder gave."""

    options: list[str] = field(default_factory=list)

    def pick(self, option: str, given: T | None, previous: T | None, default: T) -> T:
        if given is not None:
            return given
        if previous is None:
            return default
        if previous != default:
            self.options.append(f"{option} {previous}")
        return previous


def choose(
    loaded: "Settings", given: SetupOptions, folder: SetupFolder, previous: "PreviousSetup"
) -> Choices:
    """Raises typer.BadParameter or SetupError."""
    kept = _Kept()
    groups = loaded.policy.policy().groups
    before = previous.authorization
    more_groups = tuple(group for group in (before.groups if before else ()) if group not in groups)
    service_url = _service_url(loaded, given, folder, previous, kept)
    service_ca_pem = _service_ca(loaded, given, previous, kept)
    mode = kept.pick("--mode", given.mode, _previous_mode(given, folder, before), None)
    authorized_ttl, unauthorized_ttl, timeout = _durations(given, before, kept)
    return Choices(
        service_url=service_url,
        service_ca_pem=service_ca_pem,
        mode=mode,
        failure_policy=_failure_policy(given, before, kept),
        authorized_ttl=authorized_ttl,
        unauthorized_ttl=unauthorized_ttl,
        timeout=timeout,
        control_plane_dir=_control_plane_dir(given, before, kept),
        groups=groups,
        more_groups=_more_groups(given, more_groups, kept),
        bound=_bound(given, (*groups, *more_groups), previous, kept),
        audit=_audit(given, previous, kept),
        kept=tuple(kept.options),
    )


def _failure_policy(
    given: SetupOptions, before: "PreviousAuthorization | None", kept: _Kept
) -> FailurePolicy:
    previous = before.failure_policy if before else None
    return kept.pick("--failure-policy", given.failure_policy, previous, "NoOpinion")


def _durations(
    given: SetupOptions, before: "PreviousAuthorization | None", kept: _Kept
) -> tuple[str, str, str]:
    """The two times to live, and the timeout."""
    authorized, unauthorized, timeout = (
        (before.authorized_ttl, before.unauthorized_ttl, before.timeout) if before else (None, None, None)
    )
    return (
        kept.pick("--authorized-ttl", given.authorized_ttl, authorized, "5s"),
        kept.pick("--unauthorized-ttl", given.unauthorized_ttl, unauthorized, "2s"),
        kept.pick("--timeout", given.timeout, timeout, "3s"),
    )


def _control_plane_dir(given: SetupOptions, before: "PreviousAuthorization | None", kept: _Kept) -> str:
    previous = str(before.kubeconfig.parent) if before else None
    return kept.pick("--control-plane-dir", given.control_plane_dir, previous, CONTROL_PLANE_FOLDER)


def _previous_mode(
    given: SetupOptions, folder: SetupFolder, before: "PreviousAuthorization | None"
) -> WebhookMode | None:
    from clustercert.manifests.folder import AUTHORIZATION

    if given.mode is not None or before is None:
        return None
    if before.mode is None:
        raise SetupError(
            f"The matchConditions in {folder.path / AUTHORIZATION} are not those that this command writes, so they "
            "can't be kept. Give --mode to replace them."
        )
    return before.mode


def _more_groups(given: SetupOptions, before: tuple[str, ...], kept: _Kept) -> tuple[str, ...]:
    if given.group is not None:
        return tuple(given.group)
    kept.options.extend(f"--group {group}" for group in before)
    return before


def _bound(
    given: SetupOptions, groups: tuple[str, ...], previous: "PreviousSetup", kept: _Kept
) -> dict[str, str]:
    if previous.bindings is None:
        return bound_roles(groups, given.bind)
    before = previous.bindings.bound
    bound, defaults = bound_roles(groups, given.bind, before), bound_roles(groups, None)
    kept.options.extend(
        f"--bind {group}={role}"
        for group, role in before.items()
        if bound[group] == role != defaults.get(group)
    )
    kept.options.extend(f"no binding of {group}" for group in defaults if group not in bound)
    if previous.bindings.others:
        kept.options.append("what was added to rbac.yaml")
    return bound


def _audit(given: SetupOptions, previous: "PreviousSetup", kept: _Kept) -> bool:
    if given.audit is not None:
        return given.audit
    if previous.audit is False:
        kept.options.append("--no-audit")
    return previous.audit is not False


def _service_url(
    loaded: "Settings", given: SetupOptions, folder: SetupFolder, previous: "PreviousSetup", kept: _Kept
) -> str:
    from clustercert.manifests.folder import WEBHOOK

    if given.webhook_url is not None:
        return _base_url(given.webhook_url)
    if previous.webhook is not None:
        url = previous.webhook.service_url
        if urlsplit(url).scheme == "http":
            raise SetupError(f"{folder.path / WEBHOOK}: {_plain_http(url)}")
        return kept.pick("--webhook-url", None, url, "")
    public_url = loaded.server.public_url
    if public_url is None:
        raise typer.BadParameter(
            "say where the control plane reaches this service, or set server.public_url.",
            param_hint="--webhook-url",
        )
    if urlsplit(public_url).scheme == "http":
        raise SetupError(f"server.public_url: {_plain_http(public_url)}")
    return _base_url(public_url)


def _base_url(said: str) -> str:
    from clustercert.client.wire import ClientError, service_url

    try:
        base = service_url(said, plain_http=True)
    except ClientError as error:
        raise typer.BadParameter(
            "write it like https://clustercert.example.com, without a path.", param_hint="--webhook-url"
        ) from error
    if urlsplit(base).scheme == "http":
        raise typer.BadParameter(_plain_http(base), param_hint="--webhook-url")
    return base


def _plain_http(url: str) -> str:
    # Source: kubernetes/client-go, tools/clientcmd/client_config.go: IsConfigTransportTLS.
    return (
        f"an API server can't use {url}. It sends its token over https only, on loopback too: over http every request "
        "would be refused, and revoked certificates would go on working without a sign. Serve TLS "
        "(server.tls_certificate and server.tls_key, or `clustercert demo --tls`), and give the https address with "
        "--webhook-url."
    )


def _service_ca(
    loaded: "Settings", given: SetupOptions, previous: "PreviousSetup", kept: _Kept
) -> bytes | None:
    """The CA of the service's certificate. Raises OSError, or InvalidRequest where a file is not PEM."""
    from clustercert.certificate import certificates, chain_pem

    if given.webhook_ca is None and previous.webhook is not None:
        ca_pem = previous.webhook.ca_pem
        if ca_pem is not None:
            names = ", ".join(each.subject.rfc4514_string() for each in certificates(ca_pem))
            kept.options.append(f"--webhook-ca ({names})")
        return ca_pem
    ca_file = given.webhook_ca or self_made_ca(loaded)
    # What else lies in the file is not for the control plane.
    return chain_pem(certificates(ca_file.read_bytes())) if ca_file is not None else None


def self_made_ca(loaded: "Settings") -> Path | None:
    """The CA that the service made for itself, if it did."""
    path = loaded.data_dir / SELF_MADE_CA
    return path if loaded.server.tls_certificate is None and path.exists() else None
