"""`clustercert kubernetes setup`: the folder that an operator copies to a control plane."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli import cluster as cluster_commands
from clustercert.cli.cluster import ClusterArgument, InProjectOption
from clustercert.cli.output import answer, note, printable
from clustercert.cli.session import Operator, operate, settings
from clustercert.errors import ClustercertError

if TYPE_CHECKING:
    # The command loads the nouns only when it is run.
    from datetime import datetime

    from clustercert.manifests.authorization import Asking
    from clustercert.manifests.folder import Setup
    from clustercert.model import Cluster
    from clustercert.settings import Settings
    from clustercert.webhook.tokens import IssuedWebhookToken

CONTROL_PLANE_FOLDER = PurePosixPath("/etc/kubernetes/clustercert")
SELF_MADE_CA = "tls-ca.pem"

# Kubernetes keeps an answer for the default of 30 seconds where 0 is written, and takes no negative duration.
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
MAX_TTL_SECONDS = 300
# Source: kubernetes/staging/src/k8s.io/apiserver/pkg/apis/apiserver/validation: at most 30 seconds.
MAX_TIMEOUT_SECONDS = 30


class Mode(StrEnum):
    """Who is asked about."""

    DEFAULT = "default"
    KNOWN_ONLY = "known-only"


class FailurePolicy(StrEnum):
    """What the API server does without an answer."""

    NO_OPINION = "NoOpinion"
    DENY = "Deny"


class SetupError(ClustercertError):
    """The folder can't be written; the message says why."""


BindOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GROUP=CLUSTERROLE",
        help="Bind a group of the policy to this cluster role; wins over the defaults. Any number of times.",
    ),
]


def setup(
    context: typer.Context,
    name: ClusterArgument,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; made with mode 0700.")],
    project: InProjectOption = None,
    mode: Annotated[
        Mode | None,
        typer.Option(
            help="Ask about members of the policy's groups, or about every client certificate but the exempt. "
            "[default: as the cluster is]"
        ),
    ] = None,
    failure_policy: Annotated[
        FailurePolicy,
        typer.Option(
            help="Without an answer: NoOpinion lets RBAC decide, Deny lets nobody in who is asked about."
        ),
    ] = FailurePolicy.NO_OPINION,
    authorized_ttl: Annotated[str, typer.Option(metavar="DURATION", help="Kept for: allowed.")] = "5s",
    unauthorized_ttl: Annotated[
        str,
        typer.Option(
            metavar="DURATION", help="Kept for: denied, and no opinion. A revocation takes as long."
        ),
    ] = "2s",
    timeout: Annotated[str, typer.Option(metavar="DURATION", help="How long to wait for an answer.")] = "3s",
    webhook_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="This service, as the control plane reaches it. [default: server.public_url]"
        ),
    ] = None,
    webhook_ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The CA of its certificate, PEM. [default: the self-made one, or the system's]",
        ),
    ] = None,
    bind: BindOption = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GROUP",
            help="Ask about this group too: one that certificates still have and the policy hasn't.",
        ),
    ] = None,
    audit: Annotated[bool, typer.Option("--audit/--no-audit", help="Send audit events too.")] = True,
    control_plane_dir: Annotated[
        str, typer.Option(metavar="DIR", help="Where the files will lie on the control plane.")
    ] = str(CONTROL_PLANE_FOLDER),
    force: Annotated[
        bool, typer.Option("--force", help="Write over what is there. Its token stays, if it is still good.")
    ] = False,
) -> None:
    """Write everything that a cluster's control plane needs, and a README.md that says what to do with it.

    The client CAs, how the API server asks this service about revocations, a token for it, RBAC bindings, and
    kubeadm's form of the flags.
    """
    from clustercert.manifests import folder

    loaded = settings(context)
    target = _Target(out, force=force)
    target.check()
    url, ca_pem = _service(loaded, webhook_url, webhook_ca)
    groups = policy_groups(loaded)
    bound = bound_roles(groups, bind)
    for option, value in (("authorized", authorized_ttl), ("unauthorized", unauthorized_ttl)):
        _checked(value, MAX_TTL_SECONDS, f"--{option}-ttl")
    _checked(timeout, MAX_TIMEOUT_SECONDS, "--timeout")
    if not PurePosixPath(control_plane_dir).is_absolute() or not control_plane_dir.isprintable():
        raise typer.BadParameter("say an absolute path.", param_hint="--control-plane-dir")

    def asking(cluster: "Cluster", unnumbered_until: "datetime | None") -> "Asking":
        from clustercert.manifests.authorization import Asking

        return Asking(
            mode=(mode or Mode(cluster.options.mode)).value,
            groups=(*groups, *(group or ())),
            unnumbered_until=unnumbered_until,
            exemptions=cluster.options.exemptions,
            failure_policy=failure_policy.value,
            authorized_ttl=authorized_ttl,
            unauthorized_ttl=unauthorized_ttl,
            timeout=timeout,
            kubeconfig=str(PurePosixPath(control_plane_dir) / folder.WEBHOOK),
        )

    def setup_of(
        cluster: "Cluster", client_cas_pem: bytes, unnumbered_until: "datetime | None", token: str
    ) -> "Setup":
        return folder.Setup(
            cluster=cluster,
            client_cas_pem=client_cas_pem,
            service_url=url,
            service_ca_pem=ca_pem,
            token=token,
            folder=control_plane_dir.rstrip("/") or "/",
            asking=asking(cluster, unnumbered_until),
            bound=bound,
            unbound=tuple(each for each in groups if each not in bound),
            audit=audit,
        )

    async def work(operator: Operator) -> Mapping[str, str]:
        from clustercert.certificate import chain_pem
        from clustercert.model import utc_now

        cluster = await cluster_commands.find(operator, name, project)
        client_cas_pem = chain_pem(await operator.parts.clusters.rows.bundle(cluster.id))
        unnumbered_until = await operator.parts.enforcement.last_unnumbered(cluster.id, utc_now())
        kept = await _kept_token(operator, cluster, target)
        if kept is not None:
            return target.write(folder.files(setup_of(cluster, client_cas_pem, unnumbered_until, kept)))
        made = await _new_token(operator, cluster)
        try:
            return target.write(folder.files(setup_of(cluster, client_cas_pem, unnumbered_until, made.text)))
        except OSError:
            # Nobody has it, and it would count as one of the two that a cluster may have.
            await operator.parts.webhook.tokens.remove(
                cluster, made.token.id, actor=operator.actor, origin=operator.origin
            )
            raise

    written = operate(context, work)
    answer("".join(f"{out / each}\n" for each in written))
    note(f"Next: do what {out / folder.README} says, then run `clustercert kubernetes verify {name}`.")


def policy_groups(loaded: "Settings") -> tuple[str, ...]:
    """The Kubernetes groups that the policy gives, each once."""
    return tuple(dict.fromkeys(group for rule in loaded.policy.rules for group in rule.groups))


def bound_roles(groups: Sequence[str], bind: Sequence[str] | None) -> dict[str, str]:
    """The ClusterRole of each group that has one. Raises typer.BadParameter."""
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
    bindings = DEFAULT_BINDINGS | wanted
    return {group: bindings[group] for group in groups if group in bindings}


@dataclass(frozen=True, slots=True)
class _Target:
    """The folder to write."""

    folder: Path
    force: bool

    def check(self) -> None:
        """Raise SetupError where something would be lost."""
        if self.folder.exists() and not self.folder.is_dir():
            raise SetupError(f"{self.folder} is no folder.")
        there = [name for name in _names() if (self.folder / name).exists()]
        if there and not self.force:
            raise SetupError(
                f"{self.folder} has {', '.join(there)} already. Say another folder, or add --force to write over them."
            )

    def token(self) -> str | None:
        """The token of an earlier time, if there is one."""
        import yaml

        from clustercert.manifests.folder import WEBHOOK

        try:
            document = yaml.safe_load((self.folder / WEBHOOK).read_text(encoding="utf-8"))
            return str(document["users"][0]["user"]["token"])
        except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError):
            return None

    def write(self, files: Mapping[str, str]) -> Mapping[str, str]:
        """Write the files, take away what else is there of an earlier time, and return them. Raises OSError."""
        from clustercert.private_file import make_private_folder, write_private

        make_private_folder(self.folder)
        for name, content in files.items():
            write_private(self.folder / name, content)
        for name in _names():
            if name not in files:
                (self.folder / name).unlink(missing_ok=True)
        return files


def _names() -> tuple[str, ...]:
    from clustercert.manifests.folder import NAMES

    return NAMES


async def _kept_token(operator: Operator, cluster: "Cluster", target: _Target) -> str | None:
    """The token in the folder, if it still is the cluster's."""
    kept = target.token()
    return (
        kept if kept is not None and await operator.parts.webhook.tokens.belongs(cluster.id, kept) else None
    )


async def _new_token(operator: Operator, cluster: "Cluster") -> "IssuedWebhookToken":
    """Raises SetupError."""
    from clustercert.errors import Conflict

    tokens = operator.parts.webhook.tokens
    try:
        return await tokens.create(cluster, actor=operator.actor, origin=operator.origin)
    except Conflict as error:
        raise SetupError(
            f"{error.message} See `clustercert kubernetes token list {cluster.name}`, or write over the folder of an "
            "earlier time with --force, which keeps its token."
        ) from error


def _service(loaded: "Settings", url: str | None, ca_file: Path | None) -> tuple[str, bytes | None]:
    """The service's base address and its CA. Raises typer.BadParameter or SetupError."""
    from clustercert.certificate import certificates, chain_pem
    from clustercert.client.wire import ClientError, service_url

    said = url or loaded.server.public_url
    if said is None:
        raise typer.BadParameter(
            "say where the control plane reaches this service, or set server.public_url.",
            param_hint="--webhook-url",
        )
    try:
        base = service_url(said)
    except ClientError as error:
        raise typer.BadParameter(
            "write it like https://clustercert.example.com, without a path; http only on this very machine.",
            param_hint="--webhook-url",
        ) from error
    self_made = loaded.data_dir / SELF_MADE_CA
    if ca_file is None and loaded.server.tls_certificate is None and self_made.exists():
        ca_file = self_made
    if ca_file is None:
        return base, None
    # What else lies in the file is not for the control plane.
    return base, chain_pem(certificates(ca_file.read_bytes()))


def _checked(duration: str, most_seconds: int, option: str) -> None:
    """Raise typer.BadParameter unless it is a duration as Go writes it, within its bounds."""
    parts = _DURATION.findall(duration)
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != duration or not 0 < seconds <= most_seconds:
        raise typer.BadParameter(
            f"write it like 2s or 500ms, more than nothing and at most {most_seconds}s.", param_hint=option
        )
