"""`clustercert kubeconfig merge`: adds clusters to the kubeconfig that kubectl reads."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from clustercert.cli.commands import expand_options
from clustercert.cli.kubeconfig import entries, files
from clustercert.cli.kubeconfig.document import CURRENT, Kubeconfig
from clustercert.cli.kubeconfig.entries import DEFAULT_TEMPLATE, ClusterRef
from clustercert.cli.login.options import LoginOptions
from clustercert.cli.lookup import ReachableCluster, reachable_cluster, reachable_clusters
from clustercert.cli.options import (
    CommandError,
    ContextNameOption,
    InsecureOption,
    LifetimeOptions,
    ProjectDomainOption,
    UnknownName,
)
from clustercert.cli.output import print_note

if TYPE_CHECKING:
    from clustercert.cli.kubeconfig.validation import ValidatedKubeconfig
    from clustercert.cli.login.profile import Profile
    from clustercert.client import Client
    from clustercert.model import JsonObject

KubeconfigOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Kubeconfig. [default: from KUBECONFIG, or ~/.kube/config]", show_default=False
    ),
]


@dataclass(frozen=True, slots=True)
class EntryOptions:
    """The options for the new entries."""

    embed: Annotated[
        bool, typer.Option("--embed", help="Write certificates into the file, instead of the exec plugin.")
    ] = False
    files: Annotated[
        bool,
        typer.Option(
            "--files", help="Write entries with certificate files, which `clustercert refresh` renews."
        ),
    ] = False
    context_name: ContextNameOption = DEFAULT_TEMPLATE
    internal: Annotated[bool, typer.Option("--internal", help="Prefer the private address.")] = False
    insecure: InsecureOption = False
    service_key: Annotated[
        bool, typer.Option("--service-key", help="Let the service create private keys.")
    ] = False
    expires_in: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Lifetime such as 30m or 8h. [default: 8h, or the policy's limit]"),
    ] = None

    def __post_init__(self) -> None:
        if self.embed and self.files:
            raise typer.BadParameter("Give only one of --embed and --files.")
        LifetimeOptions(expires_in=self.expires_in).issue_options()
        entries.parse_template(self.context_name)

    def user(self, ref: ClusterRef, kubeconfig: "ValidatedKubeconfig") -> "JsonObject":
        """Return the user entry. Without --embed, also saves the certificate, in the exec plugin's cache or a file."""
        if self.embed:
            return dict(kubeconfig.credential)
        from clustercert.cli.credential import cache
        from clustercert.cli.credential.certificate_files import CertificateFile
        from clustercert.cli.credential.renewal import Credential, store
        from clustercert.cli.login import profile

        state = cache.login_state(str(profile.path_of(ref.profile, os.environ)))
        credential = Credential.from_kubeconfig(kubeconfig, state)
        if self.files:
            file = CertificateFile(*ref.identity)
            file.write(credential)
            return {"client-certificate": str(file.path), "client-key": str(file.path)}
        store(cache.path_of(*ref.identity), credential)
        options = ["--service-key"] if self.service_key else []
        if self.expires_in is not None:
            options += ["--expires-in", self.expires_in]
        return entries.exec_user(ref, options)


class _NewEntry(NamedTuple):
    """The contents of a new cluster entry and of a new user entry."""

    ref: ClusterRef
    address: "JsonObject"
    user: "JsonObject"


@dataclass(slots=True)
class _Plan:
    """The names of the new entries, and the kubeconfig files in which to write the entries."""

    files: list[Path]
    configs: dict[Path, Kubeconfig]
    names: dict[str, ClusterRef] = field(default_factory=dict)

    @classmethod
    def read(cls, explicit: Path | None) -> "_Plan":
        paths = files.loading_order(explicit, os.environ)
        return cls(paths, {path: files.load(path) for path in paths})

    def add(self, name: str, ref: ClusterRef) -> None:
        """Add the name of a new entry. Raises CommandError if another entry has this name."""
        if name in self.names:
            raise CommandError(
                f"Two clusters would get the name {name}. Choose names with --context-name, such as "
                "'{domain}-{project}-{cluster}' or '{profile}-{cluster}-{id}'."
            )
        for path, config in self.configs.items():
            entries.check_owner(config, path, name, ref)
        self.names[name] = ref

    def target(self, name: str) -> Path:
        """Return the file that has this context, or the file for new entries."""
        holders = (path for path, config in self.configs.items() if name in config.entries("contexts"))
        return next(holders, files.default_target(self.files))


@expand_options
def merge(
    clusters: Annotated[
        list[str] | None, typer.Argument(metavar="CLUSTER…", help="Names or ids of clusters.")
    ] = None,
    *,
    every: Annotated[
        bool, typer.Option("--all", help="All clusters that you can access with the login.")
    ] = False,
    project: Annotated[
        str | None,
        typer.Option(
            metavar="PROJECT",
            help="Project of the clusters; required if several projects have a cluster of this name.",
        ),
    ] = None,
    domain: ProjectDomainOption = None,
    options: EntryOptions,
    login: LoginOptions,
    kubeconfig: KubeconfigOption = None,
    use: Annotated[bool, typer.Option("--use", help="Make the new context the current one.")] = False,
) -> None:
    """Add clusters to your kubeconfig, so that kubectl gets certificates by itself.

    kubectl then runs `clustercert credential` when it needs a certificate. Other entries of the file do not change.
    The current context changes only with --use. A backup of the previous file is kept in the same folder.
    """
    if bool(clusters) == every:
        raise typer.BadParameter(
            f"{'Name clusters or give --all, not both' if every else 'Name clusters, or give --all'}."
        )
    if use and (every or len(clusters or ()) != 1):
        raise typer.BadParameter("--use needs exactly one cluster.")
    chosen = login.profile()
    if not options.embed and login.saved_name is None:
        raise CommandError(
            "Renewing certificates needs a saved login. Run `clustercert login URL`, or write the certificates into "
            "the kubeconfig with --embed."
        )
    plan = _Plan.read(kubeconfig)
    with chosen.explain_rejection(), chosen.client() as client:
        found = _selected(client, chosen, clusters or (), project, domain)
        for ref in (ClusterRef(login.label, *each) for each in found):
            plan.add(entries.context_name(options.context_name, ref, chosen.user), ref)
        new = _issued(client, plan, options, skip=every)
    _write(plan, new, use=use)


def _selected(
    client: "Client", chosen: "Profile", names: Sequence[str], project: str | None, domain: str | None
) -> list[ReachableCluster]:
    if names:
        found = [reachable_cluster(client, chosen, name, project, domain) for name in names]
    else:
        if project is None and domain is None and chosen.chosen_project:
            project = chosen.project_id
        found = reachable_clusters(client, project, domain)
    if not found:
        raise UnknownName(
            f"There are no clusters in {f'the project {project}' if project else chosen.scope}."
        )
    return list(dict.fromkeys(found))


def _issued(client: "Client", plan: _Plan, options: EntryOptions, *, skip: bool) -> dict[str, _NewEntry]:
    """Request certificates. Returns the new entries by name.

    Args:
        skip: whether to leave out clusters for which the service refuses a certificate.
    """
    from clustercert.cli.kubeconfig.request import CertificateRequest
    from clustercert.client.connection import ApiError

    found = {}
    for name, ref in plan.names.items():
        lifetime = LifetimeOptions(expires_in=options.expires_in)
        request = CertificateRequest(ref.project_id, ref.cluster_id, lifetime, not options.service_key)
        try:
            kubeconfig = request.send(client)
        except ApiError as error:
            if not skip or error.http_status not in (403, 404):
                raise
            print_note(f"Skipped {ref.cluster}: {error.message}")
            continue
        address = entries.verified_address(
            kubeconfig.document, internal=options.internal, insecure=options.insecure
        )
        found[name] = _NewEntry(ref, address, options.user(ref, kubeconfig))
    if not found:
        raise CommandError("The service refused certificates for all clusters.")
    return found


def _write(plan: _Plan, new: dict[str, _NewEntry], *, use: bool) -> None:
    by_file: dict[Path, dict[str, _NewEntry]] = {}
    for name, entry in new.items():
        by_file.setdefault(plan.target(name), {})[name] = entry
    current, current_file = next(iter(new)), files.default_target(plan.files)
    if use:
        by_file.setdefault(current_file, {})
    for path, in_file in by_file.items():
        # Change each file only once, so that the backup is the file from before the command.
        used = current if use and path == current_file else None
        files.change(path, partial(_put, path=path, new=in_file, current=used))
        for name, entry in in_file.items():
            print_note(f"{name}: the cluster {entry.ref.cluster} at {entry.address['server']}, in {path}")
            if warning := entries.address_warning(entry.address):
                print_note(warning)
    if not use:
        _hint(plan, current)


def _put(config: Kubeconfig, *, path: Path, new: Mapping[str, _NewEntry], current: str | None) -> None:
    """Put the new entries into a locked file. Checks again whether other programs have added entries of these names."""
    for name, entry in new.items():
        entries.check_owner(config, path, name, entry.ref)
        entries.put(config, name, *entry)
    if current is not None:
        config.value[CURRENT] = current


def _hint(plan: _Plan, name: str) -> None:
    current = next((config.current for config in plan.configs.values() if config.current), None)
    if current != name and sys.stderr.isatty():
        print_note(
            f"The current context stays {current or 'empty'}. Switch with "
            f"`kubectl config use-context {shlex.quote(name)}`."
        )
