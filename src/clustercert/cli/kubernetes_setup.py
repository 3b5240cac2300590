"""`clustercert kubernetes setup`: writes the files that a control plane needs."""

from dataclasses import replace
from typing import TYPE_CHECKING

from clustercert.cli.commands import on_store
from clustercert.cli.options import ClusterArgument, CommandError, InProjectOption, ProjectDomainOption
from clustercert.cli.output import note, write_out
from clustercert.cli.session import Operator
from clustercert.cli.setup_folder import SetupFolder
from clustercert.cli.setup_options import SetupOptions, duration_seconds
from clustercert.cli.setup_values import SetupResolver, self_made_ca

if TYPE_CHECKING:
    from clustercert.kubernetes.setup.values import Setup
    from clustercert.kubernetes.webhook.tokens import IssuedWebhookToken
    from clustercert.model import Cluster
    from clustercert.settings import Settings


@on_store
async def setup(
    operator: Operator,
    name: ClusterArgument,
    folder: SetupFolder,
    options: SetupOptions,
    project: InProjectOption = None,
    domain: ProjectDomainOption = None,
) -> None:
    """Write the files that a cluster's control plane needs.

    These are the client CAs, the authorization webhook's configuration and token, RBAC bindings, the flags for kubeadm,
    and a README.md that explains them. With --force, an existing folder is updated: options that you omit
    leave their values unchanged.
    """
    from clustercert.kubernetes.setup.authorization import LIMITS
    from clustercert.kubernetes.setup.values import README
    from clustercert.pki.certificates import chain_pem

    folder.check()
    resolver = SetupResolver(operator.parts.settings, options, folder, folder.read_previous())
    resolver.check()
    cluster = await operator.cluster(name, project, domain)
    client_cas_pem = chain_pem(await operator.parts.clusters.queries.bundle(cluster.id))
    resolved = resolver.resolve(cluster, client_cas_pem)
    written = await _write(operator, resolved, folder)
    write_out("".join(f"{folder.out / each}\n" for each in written))
    if resolver.kept:
        note(
            f"Kept from the existing folder: {', '.join(resolver.kept)}. Use options to change these values."
        )
    if resolved.webhook.uses_flags:
        note(LIMITS)
    if duration_seconds(resolved.webhook.unauthorized_ttl) > cluster.options.unauthorized_ttl_seconds:
        note(
            f"The API server may accept a revoked certificate for {resolved.webhook.unauthorized_ttl}, longer than the "
            "cluster is registered with, and such uses are reported. Set the time: "
            f"`clustercert cluster update {cluster.id} --unauthorized-ttl SECONDS`."
        )
    note(_handshake_result(operator.parts.settings, resolved))
    note(f"Next: follow {folder.out / README}, then run `clustercert kubernetes verify {cluster.id}`.")


async def _write(operator: Operator, resolved: "Setup", folder: SetupFolder) -> list[str]:
    """Write the files, with a new token unless the previous one is valid. Returns the names of the files.

    Raises CommandError or OSError.
    """
    from clustercert.kubernetes.setup.files import files

    tokens, created = operator.parts.webhook.tokens, None
    if not resolved.token or not await tokens.is_valid(resolved.cluster.id, resolved.token):
        created = await _create_token(operator, resolved.cluster)
        resolved = replace(resolved, token=created.text)
    written = files(resolved)
    try:
        folder.write(written)
    except OSError:
        if created is not None:
            # Remove the unused token: a cluster may have only two.
            await tokens.remove(resolved.cluster, created.token.id, actor=operator.actor)
        raise
    return list(written)


async def _create_token(operator: Operator, cluster: "Cluster") -> "IssuedWebhookToken":
    """Create a token. Raises CommandError if the cluster already has two."""
    from clustercert.model.errors import Conflict

    try:
        return await operator.parts.webhook.tokens.create(cluster, actor=operator.actor)
    except Conflict as error:
        raise CommandError(
            f"{error.message} See `clustercert kubernetes token list {cluster.id}`, or update an existing folder "
            "with --force, which keeps its token."
        ) from error


def _handshake_result(loaded: "Settings", resolved: "Setup") -> str:
    """Describe the result of a TLS handshake with the webhook, which only the control plane may be able to reach."""
    from clustercert.kubernetes.setup.handshake import HandshakeError, check_handshake

    try:
        return check_handshake(resolved.service_url, resolved.service_ca_pem, resolved.client)
    except HandshakeError as error:
        effect = (
            "revoked certificates keep working"
            if resolved.webhook.failure_policy == "NoOpinion"
            else "holders of this service's certificates get HTTP 500"
        )
        advice = "Start the service, or check the address, unless only the control plane can reach it."
        if error.untrusted:
            made = self_made_ca(loaded)
            file = made if made is not None and made.read_bytes() != resolved.service_ca_pem else "FILE"
            advice = (
                f"Name the CA of its certificate with --webhook-ca {file}, and use an address that the certificate "
                "names."
            )
        return (
            f"Warning: the TLS handshake with {resolved.service_url} failed: {error}. If it fails for the API server "
            f"too, {effect}. {advice}"
        )
