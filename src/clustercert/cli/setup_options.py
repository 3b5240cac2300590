"""The options of `clustercert kubernetes setup`, and their validation."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer

from clustercert.cli.options import parse_pairs
from clustercert.cli.printable import printable
from clustercert.model.choices import MAX_TTL_SECONDS, FailurePolicy, ServiceAccountAccess, WebhookMode

CONTROL_PLANE_FOLDER = "/etc/kubernetes/clustercert"

# Go's format for durations. Kubernetes replaces 0 with 30 seconds, so 0 is rejected here.
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_VERSION = re.compile(r"1\.(2[4-9]|[3-9][0-9])")
# Source: kubernetes/staging/src/k8s.io/apiserver/pkg/apis/apiserver/validation: at most 30 seconds.
MAX_TIMEOUT_SECONDS = 30


BindOption = Annotated[
    list[str] | None,
    typer.Option(
        "--bind",
        metavar="GROUP=CLUSTERROLE",
        help="Bind a group from the policy to this cluster role. Overrides the defaults. Repeatable.",
    ),
]


def duration_seconds(text: str) -> float:
    """Convert a duration as Go writes it, such as 1m30s."""
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(text))


def _duration_option(max_seconds: int, help_text: str) -> Any:
    def parse(text: str) -> str:
        whole = "".join(number + unit for number, unit in _DURATION.findall(text))
        if whole != text or not 0 < duration_seconds(text) <= max_seconds:
            raise typer.BadParameter(
                f"{text!r} is not valid. Write it like 2s or 500ms, greater than 0 and at most {max_seconds}s."
            )
        return text

    return typer.Option(parser=parse, metavar="DURATION", help=help_text)


def _parse_version(text: str) -> int:
    """Return the minor version."""
    version = _VERSION.fullmatch(text)
    if version is None:
        raise typer.BadParameter(f"{text!r} is not valid. Write it like 1.29, at least 1.24.")
    return int(version[1])


def _parse_folder(text: str) -> str:
    if not (PurePosixPath(text).is_absolute() and text.isprintable()):
        raise typer.BadParameter(f"{text!r} is not an absolute path.")
    return text


@dataclass(frozen=True, slots=True)
class SetupOptions:
    """The options for the files. `None` keeps the value of an existing folder, or uses the default."""

    mode: Annotated[
        WebhookMode | None,
        typer.Option(
            help="Call the webhook for this service's certificates, or for all client certificates except exempt "
            "ones. [default: the cluster's mode]"
        ),
    ] = None
    kubernetes_version: Annotated[
        int | None,
        typer.Option(
            parser=_parse_version,
            metavar="1.N",
            help="API server version, if older than 1.32. Up to 1.29, flags are written instead of a file.",
        ),
    ] = None
    failure_policy: Annotated[
        FailurePolicy | None,
        typer.Option(
            help="If the webhook fails: NoOpinion leaves the decision to RBAC, Deny denies. [default: NoOpinion]"
        ),
    ] = None
    authorized_ttl: Annotated[
        str | None, _duration_option(MAX_TTL_SECONDS, "Cache `allowed` this long. [default: 5s]")
    ] = None
    unauthorized_ttl: Annotated[
        str | None,
        _duration_option(
            MAX_TTL_SECONDS,
            "Cache `denied` and `no opinion` this long; delays revocations. [default: the cluster's, 2s]",
        ),
    ] = None
    timeout: Annotated[
        str | None, _duration_option(MAX_TIMEOUT_SECONDS, "Time limit for a webhook call. [default: 3s]")
    ] = None
    webhook_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Address of this service for the control plane (https). [default: webhook.public_url, or else "
            "server.public_url]",
        ),
    ] = None
    webhook_ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CA of this service's certificate (PEM). [default: the self-signed CA, or the system's CAs]",
        ),
    ] = None
    webhook_client_certificate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Certificate with which the API server connects, if webhook.client_ca requires one (PEM).",
        ),
    ] = None
    webhook_client_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Key of that certificate (PEM, not encrypted).")
    ] = None
    bind: BindOption = None
    audit: Annotated[
        bool | None,
        typer.Option("--audit/--no-audit", help="Send audit events to this service. [default: yes]"),
    ] = None
    certificate_requests: Annotated[
        bool | None,
        typer.Option(
            "--deny-certificate-requests/--allow-certificate-requests",
            help="Write an admission policy: holders of this service's certificates may not create or approve requests "
            "for client certificates in the cluster. Needs Kubernetes 1.30. [default: deny]",
        ),
    ] = None
    service_accounts: Annotated[
        ServiceAccountAccess | None,
        typer.Option(
            help="Let this service ask the API server about each token of a service account, or for the public keys. "
            "For an issuer with `cluster`. [default: none]"
        ),
    ] = None
    control_plane_dir: Annotated[
        str | None,
        typer.Option(
            parser=_parse_folder,
            metavar="DIR",
            help=f"Folder for the files on the control plane. [default: {CONTROL_PLANE_FOLDER}]",
        ),
    ] = None


def bound_roles(
    groups: Sequence[str], bind: Sequence[str] | None, previous: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the ClusterRole for each group to bind. Raises typer.BadParameter.

    Args:
        previous: bindings to use instead of the defaults.
    """
    from clustercert.kubernetes.setup.rbac import DEFAULT_BINDINGS

    # Split at the last equals sign: a group name may contain one, a cluster role name can't.
    given = parse_pairs(bind, "GROUP=CLUSTERROLE", "--bind", at_last=True)
    if unknown := given.keys() - set(groups):
        raise typer.BadParameter(
            f"No policy rule grants the group {', '.join(map(printable, sorted(unknown)))}.",
            param_hint="--bind",
        )
    if previous is None:
        previous = {group: DEFAULT_BINDINGS[group] for group in groups if group in DEFAULT_BINDINGS}
    return {**previous, **given}
