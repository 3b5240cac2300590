"""`clustercert kubernetes setup`: writes the files that a control plane needs."""

import ssl
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clustercert.cli.commands import on_store
from clustercert.cli.kubernetes.archive import STANDARD_OUTPUT, check_archive, write_archive
from clustercert.cli.kubernetes.selection import ClusterSelection, Notes, folder_of, for_each
from clustercert.cli.options import InvalidOption, UsageError, parse_pairs
from clustercert.cli.session import Operator
from clustercert.cli.terminal.output import print_note, write_out
from clustercert.model.choices import (
    DistributionName,
    FailurePolicy,
    ManagedKubernetes,
    ServiceAccountAccess,
    WebhookMode,
)
from clustercert.model.errors import ClustercertError, NotFound

if TYPE_CHECKING:
    from clustercert.kubernetes.setup.resolution import Resolver
    from clustercert.kubernetes.setup.values import Setup, WebhookClient
    from clustercert.model import Cluster
    from clustercert.settings import Settings

SELF_MADE_CA = "tls-ca.pem"
_CLIENT = ("webhook_client_certificate", "webhook_client_key")

BindOption = Annotated[
    list[str] | None,
    typer.Option(
        "--bind",
        metavar="GROUP=CLUSTERROLE",
        help="Bind a group from the policy to this cluster role. Overrides the defaults. Repeatable.",
    ),
]


def parse_bindings(bind: Sequence[str] | None) -> dict[str, str]:
    """Parse the values of `--bind`: return the ClusterRole for each group. Raises InvalidOption."""
    # Split at the last equals sign: the name of a group may contain equals signs, but the name of a ClusterRole can't.
    return parse_pairs(bind, "GROUP=CLUSTERROLE", "--bind", at_last=True)


def self_made_ca(loaded: "Settings") -> Path | None:
    """Return the CA file that the service created for its self-signed certificate, or `None`."""
    path, given = (
        loaded.data_dir / SELF_MADE_CA,
        loaded.webhook.tls_certificate or loaded.server.tls_certificate,
    )
    return path if given is None and path.exists() else None


def webhook_ca(loaded: "Settings") -> str | None:
    """Return the private CA of the webhook's certificate in PEM, or `None` if the settings lead to no private CA.

    This is the CA that the service created, or a root CA at the end of the certificate's file.
    """
    from clustercert.kubernetes.setup.choices import certificates_only
    from clustercert.pki.certificates import chain_pem, is_root, parse_certificates

    if (made := self_made_ca(loaded)) is not None:
        return certificates_only(made.read_bytes())
    file = loaded.webhook.tls_certificate or loaded.server.tls_certificate
    if file is None:
        return None
    try:
        *others, last = parse_certificates(file.read_bytes())
    except (OSError, ClustercertError):
        # This machine or user may have no access to the file. The setup files can be written without this CA.
        return None
    return chain_pem((last,)).decode() if others and is_root(last) else None


def _duration(help_text: str) -> Any:
    return typer.Option(metavar="DURATION", help=help_text)


@dataclass(frozen=True, slots=True)
class FolderOptions:
    """The folder to write, and whether existing files may be updated."""

    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Folder to write, created with mode 0700. With -, write a tar archive to standard output.",
        ),
    ]
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Update an existing folder: keep the options that were given before, and a valid token.",
        ),
    ] = False


@dataclass(frozen=True, slots=True)
class SetupOptions:
    """The options for the content of the files. `None` means the value from an existing folder, or else the default.

    All options except those for the client certificate have the same names in `GivenChoices`. `given` converts the
    values that have a different type in `GivenChoices`.
    """

    distribution: Annotated[
        Literal[DistributionName, ManagedKubernetes] | None,
        typer.Option(
            help="Distribution that runs the API server. For a managed Kubernetes service, the command "
            "writes no files: it prints what this service supports. [default: kubeadm]"
        ),
    ] = None
    mode: Annotated[
        WebhookMode | None,
        typer.Option(
            help="Call the webhook for this service's certificates, or for all client certificates except exempt "
            "ones. [default: the cluster's mode]"
        ),
    ] = None
    kubernetes_version: Annotated[
        str | None,
        typer.Option(
            metavar="1.N",
            help="API server version, if older than 1.32. For versions up to 1.29, flags are written instead of a"
            " file.",
        ),
    ] = None
    failure_policy: Annotated[
        FailurePolicy | None,
        typer.Option(
            help="If the webhook fails: NoOpinion leaves the decision to RBAC, Deny denies the request. "
            "[default: NoOpinion]"
        ),
    ] = None
    authorized_ttl: Annotated[
        str | None, _duration("How long the API server caches `allowed`. [default: 5s]")
    ] = None
    unauthorized_ttl: Annotated[
        str | None,
        _duration(
            "How long the API server caches `denied` and `no opinion`. Delays revocations. [default: the "
            "cluster's value, 2s if unset]",
        ),
    ] = None
    timeout: Annotated[str | None, _duration("Time limit for a webhook call. [default: 3s]")] = None
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
            help="CA of this service's certificate (PEM). [default: the self-signed CA, or a root CA at the end of the "
            "certificate's file, or else the system's CAs]",
        ),
    ] = None
    webhook_client_certificate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Certificate with which the API server connects, if webhook.client_ca requires a "
            "certificate (PEM).",
        ),
    ] = None
    webhook_client_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Key of the client certificate (PEM, not encrypted).")
    ] = None
    bind: BindOption = None
    audit: Annotated[
        bool | None,
        typer.Option(
            "--audit/--no-audit", help="Let the API server send audit events to clustercert. [default: yes]"
        ),
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
            help="How this service may verify tokens of service accounts: by asking the API server about "
            "each token, or with the API server's public keys. Needed for an issuer with the setting "
            "`cluster`. [default: none]"
        ),
    ] = None
    control_plane_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the files on the control plane. [default: depends on the distribution]",
        ),
    ] = None

    def given(self) -> dict[str, object]:
        """Return the values of the options that the user gave, by field name in `GivenChoices`.

        Raises OSError, InvalidRequest or InvalidOption.
        """
        from clustercert.kubernetes.setup.choices import certificates_only

        given: dict[str, object] = {
            name: value for name, value in asdict(self).items() if value is not None and name not in _CLIENT
        }
        if self.webhook_ca is not None:
            given["webhook_ca"] = certificates_only(self.webhook_ca.read_bytes())
        if self.bind is not None:
            given["bind"] = parse_bindings(self.bind)
        return given

    def client(self) -> "WebhookClient | None":
        """Read the client certificate for the API server. Raises OSError or InvalidOption."""
        from clustercert.kubernetes.setup.values import WebhookClient

        certificate, key = self.webhook_client_certificate, self.webhook_client_key
        if certificate is None and key is None:
            return None
        if certificate is None or key is None:
            raise InvalidOption(
                "Give both --webhook-client-certificate and --webhook-client-key.",
                param_hint="--webhook-client-certificate",
            )
        client = WebhookClient(certificate.read_bytes(), key.read_bytes())
        try:
            # With an empty password, an encrypted key causes an error instead of a prompt.
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")
        except (ssl.SSLError, ValueError) as error:
            raise InvalidOption(
                f"{certificate} and {key} are not a certificate and its unencrypted key (PEM).",
                param_hint="--webhook-client-certificate",
            ) from error
        return client


@on_store
async def setup(
    operator: Operator, selection: ClusterSelection, folder: FolderOptions, options: SetupOptions
) -> None:
    """Write the files that a cluster's control plane needs.

    These are the client CAs, the authorization webhook's configuration and token, RBAC bindings, the API server's
    flags, and a README.md that explains them. With --force, an existing folder is updated, and the options
    that were given before are kept. For several clusters, each one has its own folder DIR/DOMAIN/PROJECT/CLUSTER.

    Examples:
        clustercert kubernetes setup prod --out control-plane
        clustercert kubernetes setup prod --out control-plane --distribution k3s
    """
    if folder.out != STANDARD_OUTPUT:
        await _set_up(operator, selection, folder, options)
        return
    check_archive(force=folder.force)
    with tempfile.TemporaryDirectory(prefix="clustercert-") as temporary:
        out = Path(temporary)
        try:
            await _set_up(operator, selection, FolderOptions(out), options, is_archive=True)
        finally:
            # If the command fails for one of several clusters, the files of the other clusters have new tokens.
            write_archive(out)


async def _set_up(
    operator: Operator,
    selection: ClusterSelection,
    folder: FolderOptions,
    options: SetupOptions,
    *,
    is_archive: bool = False,
) -> None:
    """Write the folder. For an archive, standard output has nothing else."""
    loaded = operator.components.settings
    print_paths: Callable[[str], None] = (lambda _: None) if is_archive else write_out
    if selection.is_one:
        # Check the options first, to report a wrong option even if the cluster does not exist.
        try:
            resolver = _resolver(loaded, options, folder.out, force=folder.force)
        except ClustercertError:
            # If the credentials of the cluster are tokens, report this error instead of the wrong option.
            with suppress(NotFound):
                _require_certificates(*await selection.clusters(operator))
            raise
        [cluster] = await selection.clusters(operator)
        resolved, written, notes = await _write(operator, resolver, cluster)
        print_paths("".join(f"{folder.out / each}\n" for each in written))
        readme = Path("README.md") if is_archive else folder.out / "README.md"
        following = f"Next: follow {readme}, then run `clustercert kubernetes verify {cluster.id}`."
        for note in notes:
            print_note(note)
        _print_end(following, [_try_handshake(loaded, resolved)])
        return
    # Try the handshake once for each address, because an attempt may take seconds.
    handshakes: dict[tuple[object, ...], _Handshake] = {}
    remarks = Notes()

    async def write_folder(cluster: "Cluster") -> None:
        out = folder.out / folder_of(cluster)
        resolver = _resolver(loaded, options, out, force=folder.force)
        resolved, _, notes = await _write(operator, resolver, cluster)
        print_paths(f"{out}\n")
        for note in notes:
            remarks.add(cluster.shown_name, note)
        connection = (resolved.choices.webhook_url, resolved.choices.webhook_ca, resolved.client)
        if connection not in handshakes:
            handshakes[connection] = _try_handshake(loaded, resolved)

    try:
        await for_each(operator, await selection.clusters(operator), write_folder)
    finally:
        remarks.print()
        if handshakes:
            _print_end(
                "Next: follow the README.md in each folder, then run `clustercert kubernetes verify` for these "
                "clusters.",
                list(handshakes.values()),
            )


def _require_certificates(*clusters: "Cluster") -> None:
    """Raise UsageError if the credentials of a cluster are tokens."""
    for cluster in clusters:
        if cluster.credential_kind == "token":
            raise UsageError(
                f"The cluster {cluster.shown_name} needs no files: its credentials are tokens. `clustercert cluster add"
                " --credential token` wrote its objects, and `clustercert cluster update --group-role GROUP=ROLE "
                "--from-kubeconfig FILE` writes them again. `clustercert kubernetes verify` checks them."
            )


async def _write(
    operator: Operator, resolver: "Resolver", cluster: "Cluster"
) -> "tuple[Setup, Sequence[str], Sequence[str]]":
    """Write a cluster's folder. Returns the values in the files, the names of the files, and notes for the operator."""
    _require_certificates(cluster)
    from clustercert.kubernetes.setup.folder import write_setup
    from clustercert.pki.certificates import chain_pem

    components, folder = operator.components, resolver.folder
    own = {each.certificate for each in await components.clusters.own_cas(cluster)}
    added = [each for each in await components.clusters.queries.bundle(cluster.id) if each not in own]
    resolved = resolver.setup(cluster, chain_pem(tuple(added)), signs_itself=bool(own))
    written = await write_setup(folder, resolved, components.webhook.tokens, operator.actor)
    kept = tuple(resolver.kept(cluster, resolved.choices))
    return resolved, written, list(_notes(folder.path, resolved, kept, written))


def _resolver(loaded: "Settings", options: SetupOptions, out: Path, *, force: bool) -> "Resolver":
    """Read the folder, and check the options. Raises SetupError, InvalidRequest or OSError."""
    from clustercert.kubernetes.setup.folder import SetupFolder
    from clustercert.kubernetes.setup.resolution import Resolver

    folder = SetupFolder(out)
    folder.check(force=force)
    resolver = Resolver(
        policy=loaded.policy.policy(),
        public_urls={
            "webhook.public_url": loaded.webhook.public_url,
            "server.public_url": loaded.server.public_url,
        },
        private_ca_pem=webhook_ca(loaded),
        requires_client=loaded.webhook.client_ca is not None,
        given=options.given(),
        given_client=options.client(),
        existing=folder.read(),
        folder=folder,
    )
    resolver.check()
    return resolver


def _notes(folder: Path, written: "Setup", kept: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    """Yield notes for the operator about the written files."""
    from clustercert.kubernetes.setup.authorization import LIMITS
    from clustercert.kubernetes.setup.choices import duration_seconds
    from clustercert.kubernetes.setup.values import NAMES, replacement

    if written.has_two_client_cas:
        yield (
            "client-ca.pem has two client CAs, because a rotation is running. Follow the section Replace the client CA "
            "in README.md."
        )
    if kept:
        yield f"Kept from the existing folder: {', '.join(kept)}. Use options to change these values."
    if edited := [name for name in NAMES if replacement(name) in names]:
        yield (
            f"Edited by hand, so not replaced: {', '.join(edited)}. The new versions are in "
            f"{', '.join(map(replacement, edited))}. Compare them, for example with "
            f"`diff {folder / edited[0]} {folder / replacement(edited[0])}`. Keep one of the two under the old name."
        )
    if written.choices.uses_flags:
        yield LIMITS
    unauthorized_ttl, cluster = written.choices.unauthorized_ttl, written.cluster
    if duration_seconds(unauthorized_ttl) > cluster.options.unauthorized_ttl_seconds:
        yield (
            f"The API server may accept a revoked certificate for {unauthorized_ttl}, longer than the time "
            "that is registered for the cluster. The service reports such uses. To register a longer time, run "
            f"`clustercert cluster update {cluster.id} --unauthorized-ttl DURATION`."
        )


@dataclass(frozen=True, slots=True)
class _Handshake:
    """The result of a TLS handshake with the webhook: a description, or a warning if the handshake failed."""

    text: str
    failed: bool = False


def _print_end(following: str, handshakes: Sequence[_Handshake]) -> None:
    """Print the next steps, and after them the warnings about handshakes, so that a warning is not overlooked."""
    for each in handshakes:
        if not each.failed:
            print_note(each.text)
    print_note(following)
    for each in handshakes:
        if each.failed:
            print_note(each.text)


def _try_handshake(loaded: "Settings", resolved: "Setup") -> _Handshake:
    """Try a TLS handshake with the webhook, and a request."""
    from clustercert.kubernetes.setup.webhook_check import HandshakeError, NoWebhook, check_webhook

    choices = resolved.choices
    effect = (
        "revoked certificates keep working"
        if choices.failure_policy == "NoOpinion"
        else "holders of this service's certificates get HTTP 500"
    )
    try:
        return _Handshake(
            check_webhook(choices.webhook_url, choices.webhook_ca, resolved.cluster.id, resolved.client)
        )
    except NoWebhook as error:
        return _Handshake(f"Warning: with these files, {effect}. {error}", failed=True)
    except HandshakeError as error:
        advice = "Start the service, or check the address, unless only the control plane can reach it."
        if error.untrusted:
            made = self_made_ca(loaded)
            file = made if made is not None and made.read_text() != choices.webhook_ca else "FILE"
            advice = (
                f"Name the CA of the service's certificate with --webhook-ca {file}, and use an address that the "
                "certificate names."
            )
        return _Handshake(
            f"Warning: the TLS handshake with {choices.webhook_url} failed: {error}. If it fails for the API server "
            f"too, {effect}. {advice}",
            failed=True,
        )
