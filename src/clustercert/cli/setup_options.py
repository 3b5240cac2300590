"""The options of `clustercert kubernetes setup`, and what is wrong with a value."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import typer

from clustercert.cli.guarding import WebhookMode
from clustercert.cli.output import printable
from clustercert.errors import ClustercertError

CONTROL_PLANE_FOLDER = "/etc/kubernetes/clustercert"

# Kubernetes keeps an answer for the default of 30 seconds where 0 is written, and takes no negative duration.
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
MAX_TTL_SECONDS = 300
# Source: kubernetes/staging/src/k8s.io/apiserver/pkg/apis/apiserver/validation: at most 30 seconds.
MAX_TIMEOUT_SECONDS = 30


FailurePolicy = Literal["NoOpinion", "Deny"]
"""What the API server does without an answer."""


class SetupError(ClustercertError):
    """The folder can't be written; the message says why."""


OutOption = Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; made with mode 0700.")]
ModeOption = Annotated[
    WebhookMode | None,
    typer.Option(
        help="Ask about certificates of this service, or about every client certificate but the exempt. "
        "[default: as before, or as the cluster is]"
    ),
]
FailurePolicyOption = Annotated[
    FailurePolicy | None,
    typer.Option(
        help="Without an answer: NoOpinion lets RBAC decide, Deny lets nobody in who is asked about. "
        "[default: as before, or NoOpinion]"
    ),
]
AuthorizedTtlOption = Annotated[
    str | None, typer.Option(metavar="DURATION", help="Kept for: allowed. [default: as before, or 5s]")
]
UnauthorizedTtlOption = Annotated[
    str | None,
    typer.Option(
        metavar="DURATION",
        help="Kept for: denied, and no opinion. A revocation takes as long. [default: as before, or 2s]",
    ),
]
TimeoutOption = Annotated[
    str | None,
    typer.Option(metavar="DURATION", help="How long to wait for an answer. [default: as before, or 3s]"),
]
WebhookUrlOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="This service, as the control plane reaches it; https. [default: as before, or server.public_url]",
    ),
]
WebhookCaOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The CA of its certificate, PEM. [default: as before, or the self-made one, or the system's]",
    ),
]
BindOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GROUP=CLUSTERROLE",
        help="Bind a group of the policy to this cluster role; wins over the defaults. Any number of times.",
    ),
]
GroupOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GROUP",
        help="Ask about this group too: one that certificates still have and the policy hasn't. "
        "[default: those from before]",
    ),
]
AuditOption = Annotated[
    bool | None,
    typer.Option("--audit/--no-audit", help="Send audit events too. [default: as before, or --audit]"),
]
ControlPlaneDirOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help=f"Where the files will lie on the control plane. [default: as before, or {CONTROL_PLANE_FOLDER}]",
    ),
]
ForceOption = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Write over what is there. What no option says stays as it is there, the token too if it is still good.",
    ),
]


@dataclass(frozen=True, slots=True)
class SetupOptions:
    """What the command line says; None for what it doesn't say."""

    mode: WebhookMode | None
    failure_policy: FailurePolicy | None
    authorized_ttl: str | None
    unauthorized_ttl: str | None
    timeout: str | None
    webhook_url: str | None
    webhook_ca: Path | None
    bind: Sequence[str] | None
    group: Sequence[str] | None
    audit: bool | None
    control_plane_dir: str | None

    def check(self) -> None:
        """Raise typer.BadParameter for what an API server would refuse."""
        _check_duration(self.authorized_ttl, MAX_TTL_SECONDS, "--authorized-ttl")
        _check_duration(self.unauthorized_ttl, MAX_TTL_SECONDS, "--unauthorized-ttl")
        _check_duration(self.timeout, MAX_TIMEOUT_SECONDS, "--timeout")
        folder = self.control_plane_dir
        if folder is not None and not (PurePosixPath(folder).is_absolute() and folder.isprintable()):
            raise typer.BadParameter("say an absolute path.", param_hint="--control-plane-dir")


def _check_duration(duration: str | None, most_seconds: int, option: str) -> None:
    """Raise typer.BadParameter unless it is a duration as Go writes it, within its bounds."""
    if duration is None:
        return
    parts = _DURATION.findall(duration)
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != duration or not 0 < seconds <= most_seconds:
        raise typer.BadParameter(
            f"write it like 2s or 500ms, more than nothing and at most {most_seconds}s.", param_hint=option
        )


def bound_roles(
    groups: Sequence[str], bind: Sequence[str] | None, previous: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The ClusterRole of each group that has one.

    Where there were bindings before, they take the place of the defaults. Raises typer.BadParameter.
    """
    from clustercert.manifests.access import DEFAULT_BINDINGS

    # The last one, since a group's name may have an equals sign and a cluster role's has none.
    pairs = [option.rpartition("=") for option in bind or ()]
    if not all(group and role for group, _, role in pairs):
        raise typer.BadParameter("write it as GROUP=CLUSTERROLE.", param_hint="--bind")
    wanted = {group: role for group, _, role in pairs}
    if unknown := wanted.keys() - set(groups):
        raise typer.BadParameter(
            f"no rule of the policy gives {', '.join(map(printable, sorted(unknown)))}.", param_hint="--bind"
        )
    if previous is None:
        previous = {group: DEFAULT_BINDINGS[group] for group in groups if group in DEFAULT_BINDINGS}
    return {**previous, **wanted}
