"""`clustercert kubernetes setup`: the folder that an operator copies to a control plane."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import typer

from clustercert.cli import cluster as cluster_commands
from clustercert.cli import setup_options as option
from clustercert.cli.cluster import ClusterArgument, InProjectOption
from clustercert.cli.output import answer, note
from clustercert.cli.session import Operator, operate, settings
from clustercert.cli.setup_choices import Choices, choose, self_made_ca
from clustercert.cli.setup_folder import SetupFolder
from clustercert.cli.setup_options import SetupError, SetupOptions
from clustercert.cli.webhook_handshake import HandshakeError, shake_hands

if TYPE_CHECKING:
    # The command loads the nouns only when it is run.
    from datetime import datetime

    from clustercert.manifests.authorization import Asking
    from clustercert.manifests.folder import Setup
    from clustercert.manifests.previous import PreviousSetup
    from clustercert.model import Cluster
    from clustercert.settings import Settings
    from clustercert.webhook.tokens import IssuedWebhookToken


def setup(
    context: typer.Context,
    name: ClusterArgument,
    out: option.OutOption,
    project: InProjectOption = None,
    mode: option.ModeOption = None,
    failure_policy: option.FailurePolicyOption = None,
    authorized_ttl: option.AuthorizedTtlOption = None,
    unauthorized_ttl: option.UnauthorizedTtlOption = None,
    timeout: option.TimeoutOption = None,
    webhook_url: option.WebhookUrlOption = None,
    webhook_ca: option.WebhookCaOption = None,
    bind: option.BindOption = None,
    group: option.GroupOption = None,
    audit: option.AuditOption = None,
    control_plane_dir: option.ControlPlaneDirOption = None,
    force: option.ForceOption = False,
) -> None:
    """Write everything that a cluster's control plane needs, and a README.md that says what to do with it.

    The client CAs, how the API server asks this service about revocations, a token for it, RBAC bindings, and
    kubeadm's form of the flags. Run again with --force, it changes only what the options say.
    """
    given = SetupOptions(
        mode, failure_policy, authorized_ttl, unauthorized_ttl, timeout, webhook_url, webhook_ca, bind, group, audit,
        control_plane_dir,
    )  # fmt: skip
    _set_up(context, name, project, given, SetupFolder(out, force=force))


def _set_up(
    context: typer.Context, name: str, project: str | None, given: SetupOptions, folder: SetupFolder
) -> None:
    from clustercert.manifests.folder import README

    loaded = settings(context)
    folder.check()
    given.check()
    previous = folder.previous()
    choices = choose(loaded, given, folder, previous)

    async def work(operator: Operator) -> Mapping[str, str]:
        cluster = await cluster_commands.find(operator, name, project)
        return await _write(operator, cluster, choices, folder, previous)

    written = operate(context, work)
    answer("".join(f"{folder.path / each}\n" for each in written))
    if choices.kept:
        note(f"Kept from before: {', '.join(choices.kept)}. An option changes it.")
    note(_handshake(loaded, choices))
    note(f"Next: do what {folder.path / README} says, then run `clustercert kubernetes verify {name}`.")


async def _write(
    operator: Operator, cluster: "Cluster", choices: Choices, folder: SetupFolder, previous: "PreviousSetup"
) -> Mapping[str, str]:
    """Write the folder with the token in it, or with a new one. Raises SetupError or OSError."""
    from clustercert.certificate import chain_pem
    from clustercert.manifests.folder import files
    from clustercert.model import utc_now

    _check_cluster(cluster, folder, previous)
    client_cas_pem = chain_pem(await operator.parts.clusters.rows.bundle(cluster.id))
    unnumbered_until = await operator.parts.enforcement.last_unnumbered(utc_now())
    tokens = operator.parts.webhook.tokens
    token, made = previous.webhook.token if previous.webhook is not None else None, None
    if token is None or not await tokens.belongs(cluster.id, token):
        made = await _new_token(operator, cluster)
        token = made.text
    try:
        return folder.write(
            files(_setup_of(cluster, client_cas_pem, unnumbered_until, token, choices, previous))
        )
    except OSError:
        if made is not None:
            # Nobody has it, and it would count as one of the two that a cluster may have.
            await tokens.remove(cluster, made.token.id, **operator.who)
        raise


def _check_cluster(cluster: "Cluster", folder: SetupFolder, previous: "PreviousSetup") -> None:
    """Raise SetupError where an earlier folder is another cluster's."""
    if previous.webhook is not None and previous.webhook.cluster_id != cluster.id:
        raise SetupError(
            f"{folder.path} was written for another cluster ({previous.webhook.cluster_id}), whose settings would be "
            "taken over. Say another folder."
        )


def _setup_of(
    cluster: "Cluster",
    client_cas_pem: bytes,
    unnumbered_until: "datetime | None",
    token: str,
    choices: Choices,
    previous: "PreviousSetup",
) -> "Setup":
    from clustercert.manifests.folder import Setup

    return Setup(
        cluster=cluster,
        client_cas_pem=client_cas_pem,
        service_url=choices.service_url,
        service_ca_pem=choices.service_ca_pem,
        token=token,
        folder=choices.control_plane_dir.rstrip("/") or "/",
        asking=_asking(cluster, unnumbered_until, choices),
        bound=choices.bound,
        unbound=tuple(each for each in choices.groups if each not in choices.bound),
        audit=choices.audit,
        previous_authorization=previous.authorization.document if previous.authorization else None,
        other_rbac=previous.bindings.others if previous.bindings else (),
    )


def _asking(cluster: "Cluster", unnumbered_until: "datetime | None", choices: Choices) -> "Asking":
    from clustercert.manifests.authorization import Asking
    from clustercert.manifests.folder import WEBHOOK

    return Asking(
        mode=choices.mode or cluster.options.mode,
        groups=(*choices.groups, *choices.more_groups),
        unnumbered_until=unnumbered_until,
        exemptions=cluster.options.exemptions,
        failure_policy=choices.failure_policy,
        authorized_ttl=choices.authorized_ttl,
        unauthorized_ttl=choices.unauthorized_ttl,
        timeout=choices.timeout,
        kubeconfig=str(PurePosixPath(choices.control_plane_dir) / WEBHOOK),
    )


async def _new_token(operator: Operator, cluster: "Cluster") -> "IssuedWebhookToken":
    """Raises SetupError."""
    from clustercert.errors import Conflict

    tokens = operator.parts.webhook.tokens
    try:
        return await tokens.create(cluster, **operator.who)
    except Conflict as error:
        raise SetupError(
            f"{error.message} See `clustercert kubernetes token list {cluster.name}`, or write over the folder of an "
            "earlier time with --force, which keeps its token."
        ) from error


def _handshake(loaded: "Settings", choices: Choices) -> str:
    """What a handshake with the webhook's address showed. It fails where only the control plane reaches it."""
    try:
        return shake_hands(choices.service_url, choices.service_ca_pem)
    except HandshakeError as error:
        means = (
            "revoked certificates go on working"
            if choices.failure_policy == "NoOpinion"
            else "holders of this service's certificates get HTTP 500"
        )
        return (
            f"Warning: the TLS handshake with {choices.service_url} failed: {error}. While it fails for the API server "
            f"too, {means}. {_advice(loaded, choices, untrusted=error.untrusted)}"
        )


def _advice(loaded: "Settings", choices: Choices, *, untrusted: bool) -> str:
    if not untrusted:
        return "Start the service, or check the address, unless only the control plane can reach it."
    made = self_made_ca(loaded)
    file = made if made is not None and made.read_bytes() != choices.service_ca_pem else "FILE"
    return (
        f"Give the CA of its certificate with --webhook-ca {file}, and an address that the certificate names."
    )
