"""`clustercert kubeconfig merge`: adds clusters to the kubeconfig that kubectl reads."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, cast

import typer

from clustercert.cli.commands import expand_options
from clustercert.cli.kubeconfig import entries, files
from clustercert.cli.kubeconfig.contexts import KubeconfigOption, row_of_context, show_contexts
from clustercert.cli.kubeconfig.document import CURRENT, LISTS, KubeconfigDocument
from clustercert.cli.kubeconfig.entries import Merged
from clustercert.cli.login import renewal
from clustercert.cli.login.options import LoginOptions
from clustercert.cli.lookup import reachable_cluster, reachable_clusters
from clustercert.cli.options import (
    CONTEXT_NAME_HELP,
    CommandError,
    InsecureOption,
    InvalidOption,
    LabelFilterOption,
    LifetimeOptions,
    ProjectDomainOption,
    UnknownName,
    parse_labels,
)
from clustercert.cli.terminal.output import Output, OutputOption, print_note
from clustercert.model.errors import Forbidden
from clustercert.model.kubeconfigs import ClusterRef, address_warning

if TYPE_CHECKING:
    from clustercert.cli.kubeconfig.validation import ValidatedKubeconfig
    from clustercert.cli.login.profile import Profile
    from clustercert.client import Client
    from clustercert.model import JsonObject


@dataclass(frozen=True, slots=True)
class EntryOptions:
    """The options for the new entries."""

    embed: Annotated[
        bool, typer.Option("--embed", help="Write credentials into the file, instead of the exec plugin.")
    ] = False
    files: Annotated[
        bool,
        typer.Option(
            "--files", help="Write entries with credential files, which `clustercert refresh` renews."
        ),
    ] = False
    context_name: Annotated[
        str | None,
        typer.Option(
            metavar="TEMPLATE",
            help=f"{CONTEXT_NAME_HELP} [default: the cluster's name, or DOMAIN/PROJECT/CLUSTER if the name is taken]",
        ),
    ] = None
    internal: Annotated[bool, typer.Option("--internal", help="Prefer the private address.")] = False
    insecure: InsecureOption = False
    service_key: Annotated[
        bool, typer.Option("--service-key", help="Let the service create private keys.")
    ] = False
    expires_in: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Lifetime such as 30m or 8h. [default: 8h, or the policy's limit if it is shorter]",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.embed and self.files:
            raise InvalidOption("Give only one of --embed and --files.")
        LifetimeOptions(expires_in=self.expires_in).issue_options()
        if self.context_name is not None:
            entries.parse_template(self.context_name)

    def problem(self, cluster: "JsonObject") -> Forbidden | None:
        """Return why the exec plugin would get no certificate for a cluster in the service's list, or None."""
        from clustercert.policy.lifetime import lifetime_text, parse_lifetime

        longest = cast("int | None", cluster["longest_lifetime_seconds"])
        if self.service_key:
            # The longest lifetime in the list applies only to requests with a CSR.
            return None
        if longest is None and cluster["requestable_groups"] and not (self.embed or self.files):
            # With an access request, the exec plugin gets a certificate.
            return None
        if longest is None:
            return Forbidden(
                f"The policy gives you no certificate for {cluster['name']} now. "
                f"`clustercert explain {cluster['id']} --csr` says why."
            )
        lifetime = timedelta(seconds=longest)
        if self.expires_in is None or parse_lifetime(self.expires_in) <= lifetime:
            return None
        return Forbidden(
            f"--expires-in {self.expires_in} is longer than the longest lifetime for {cluster['name']} "
            f"({lifetime_text(lifetime)}). Give a shorter --expires-in, or leave it out."
        )

    def exec_user(self, ref: ClusterRef) -> "JsonObject":
        """Return a user entry with the exec plugin."""
        options = ["--service-key"] if self.service_key else []
        if self.expires_in is not None:
            options += ["--expires-in", self.expires_in]
        return entries.exec_user(ref, options)

    def user_with_certificate(self, ref: ClusterRef, kubeconfig: "ValidatedKubeconfig") -> "JsonObject":
        """Return the user entry for --embed or --files. With --files, also writes the certificate file."""
        if self.embed:
            return dict(kubeconfig.credential)
        from clustercert.cli.credential import cache
        from clustercert.cli.credential.certificate_files import CertificateFile
        from clustercert.cli.credential.service_requests import credential_of
        from clustercert.cli.login import profile

        state = cache.login_state(str(profile.path_of(ref.profile, os.environ)))
        credential = credential_of(kubeconfig, state, ref.login)
        file = CertificateFile(*ref.identity, kind=credential.kind)
        file.write(credential)
        if file.kind == "token":
            return {"tokenFile": str(file.path)}
        return {"client-certificate": str(file.path), "client-key": str(file.path)}


class _NewEntry(NamedTuple):
    """The contents of a new cluster entry and of a new user entry."""

    ref: ClusterRef
    address: "JsonObject"
    user: "JsonObject"


@dataclass(slots=True)
class _Plan:
    """The names of the contexts, and the kubeconfig files in which to write their entries.

    Attributes:
        configs: the files, in kubectl's order.
        merged: the contexts in the files that `merge` wrote, each with its file.
        names: the clusters by the names of their contexts.
        present: the names of the contexts that the files had before.
    """

    files: list[Path]
    configs: dict[Path, KubeconfigDocument]
    merged: list[tuple[Path, Merged]]
    names: dict[str, ClusterRef] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, explicit: Path | None) -> "_Plan":
        paths = files.loading_order(explicit, os.environ)
        configs = {path: files.load(path) for path in paths}
        merged = [(path, each) for path, config in configs.items() for each in entries.merged(config)]
        return cls(paths, configs, merged)

    def present_context(self, ref: ClusterRef) -> tuple[str, Path] | None:
        """Return the name and the file of the existing context for a cluster with the same login."""
        found = ((each.context, path) for path, each in self.merged if each.ref.identity == ref.identity)
        return next(found, None)

    def keep(self, name: str, ref: ClusterRef) -> None:
        """Add an existing context of a cluster."""
        self.names[name] = ref
        self.present.add(name)

    def add(self, name: str, ref: ClusterRef) -> None:
        """Add the name of a new context. Raises CommandError if another entry has this name, or UsageError."""
        entries.check_name(name)
        if name in self.names:
            raise CommandError(
                f"Two clusters would get the name {name}. Leave out --context-name, or choose names such as "
                "'{domain}/{project}/{cluster}'."
            )
        for path, config in self.configs.items():
            entries.check_owner(config, path, name, ref)
        self.names[name] = ref

    def new_name(self, ref: ClusterRef, *, is_unique: bool) -> str:
        """Return a name for a new context: the cluster's name, with its project, domain and profile if needed.

        Names that differ only in case count as the same name, because people would confuse them.

        Args:
            is_unique: whether the user sees no other cluster of the same name.
        """
        names = [ref.cluster, ref.shown_name] if is_unique else [ref.shown_name]
        of_others = {each.context.casefold() for _, each in self.merged if each.ref.profile != ref.profile}
        if any(each.casefold() in of_others for each in names):
            names = [f"{ref.profile}/{each}" for each in names]
        present = (
            name for config in self.configs.values() for noun in LISTS for name in config.entries(noun)
        )
        taken = {each.casefold() for each in (*present, *self.names)}
        return next((each for each in names if each.casefold() not in taken), names[-1])

    def target(self, name: str) -> Path:
        """Return the file that has this context, or the file for new entries."""
        holders = (path for path, config in self.configs.items() if name in config.entries("contexts"))
        return next(holders, files.default_target(self.files))


@expand_options
def merge(
    clusters: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CLUSTER…", help="Names (CLUSTER or DOMAIN/PROJECT/CLUSTER) or ids of clusters."
        ),
    ] = None,
    *,
    every: Annotated[
        bool, typer.Option("--all", help="All clusters that you can access with the login.")
    ] = False,
    label: LabelFilterOption = None,
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
    use: Annotated[bool, typer.Option("--use", help="Make the new context the current context.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Add clusters to your kubeconfig, so that kubectl gets certificates by itself.

    kubectl then runs `clustercert credential` when it needs a certificate. Other entries of the file do not change.
    The current context changes only with --use, or if there is none. A backup of the previous file is kept in the same
    folder. --output json prints the new contexts.

    Examples:
        clustercert kubeconfig merge prod --use
        clustercert kubeconfig merge --all
        clustercert kubeconfig merge acme/eu-de/prod --context-name '{cluster}'
    """
    several = every or bool(label)
    if bool(clusters) == several:
        raise InvalidOption(
            "Name clusters, or give --all or --label, not both."
            if several
            else "Name clusters, or give --all or --label."
        )
    if use and (several or len(clusters or ()) != 1):
        raise InvalidOption("--use needs exactly one cluster.")
    labels = parse_labels(label)
    if login.saved_name is not None:
        renewal.forget_failures(login.saved_name)
    chosen = login.profile()
    if not options.embed and login.saved_name is None:
        raise CommandError(
            "Renewing certificates needs a saved login. Run `clustercert login URL`, or write the certificates into "
            "the kubeconfig with --embed."
        )
    plan = _Plan.read(kubeconfig)
    with chosen.explain_rejection(), chosen.client() as client:
        if several:
            found = _selected(client, chosen, project, domain, labels)
        else:
            found = [reachable_cluster(client, chosen, name, project, domain) for name in clusters or ()]
        by_id = {str(each["id"]): each for each in found}
        refs = [ClusterRef.parse(login.label, chosen.shown_user, each) for each in by_id.values()]
        _name_contexts(client, plan, refs, options.context_name, chosen.user, skip=several)
        new = _new_entries(client, plan, by_id, options, skip=several)
    rows = _write(plan, new, use=use)
    if output is not Output.TABLE:
        show_contexts(rows, output)


def _name_contexts(
    client: "Client", plan: _Plan, refs: Sequence[ClusterRef], template: str | None, user: str, *, skip: bool
) -> None:
    """Choose the names of the contexts. Raises ClientError, CommandError or UsageError.

    Args:
        template: the template that the user gave.
        skip: whether a context keeps a name that differs from the template, instead of an error.
    """
    new = []
    for ref in refs:
        if (present := plan.present_context(ref)) is None:
            new.append(ref)
            continue
        name, path = present
        if template is not None and entries.context_name(template, ref, user) != name:
            problem = f"The cluster {ref.shown_name} has the context {name} in {path} already."
            if not skip:
                remove = f"clustercert kubeconfig unmerge {shlex.quote(name)}"
                raise CommandError(f"{problem} To give it another name, first run `{remove}`.")
            print_note(f"{problem} It keeps its name.")
        plan.keep(name, ref)
    seen = (
        [str(each["name"]).casefold() for each in reachable_clusters(client)]
        if new and template is None
        else []
    )
    for ref in new:
        if template is not None:
            name = entries.context_name(template, ref, user)
        else:
            name = plan.new_name(ref, is_unique=seen.count(ref.cluster.casefold()) <= 1)
        plan.add(name, ref)


def _selected(
    client: "Client",
    chosen: "Profile",
    project: str | None,
    domain: str | None,
    labels: Mapping[str, str],
) -> "list[JsonObject]":
    where = f"the project {project}" if project is not None else chosen.scope
    if project is None and domain is None and chosen.chosen_project:
        project = chosen.project_id
    found = reachable_clusters(client, project, domain, labels)
    if not found:
        listed = ", ".join(f"{key}={value}" for key, value in labels.items())
        raise UnknownName(f"There are no clusters {f'with {listed} ' if labels else ''}in {where}.")
    return found


def _new_entries(
    client: "Client", plan: _Plan, clusters: "Mapping[str, JsonObject]", options: EntryOptions, *, skip: bool
) -> dict[str, _NewEntry]:
    """Return the new entries by name. Requests certificates only for --embed and --files.

    Args:
        clusters: the clusters in the service's list, by id.
        skip: whether to leave out clusters for which the service refuses a certificate.
    """
    from clustercert.client.connection import ApiError

    found = {}
    for name, ref in plan.names.items():
        cluster = clusters[ref.cluster_id]
        try:
            if (problem := options.problem(cluster)) is not None:
                raise problem
            entries.check_insecure(cluster, insecure=options.insecure)
            address = entries.verified_address(
                entries.listed_addresses(cluster), internal=options.internal, insecure=options.insecure
            )
            if options.embed or options.files:
                user = options.user_with_certificate(ref, _issued(client, ref, options, cluster))
            else:
                user = options.exec_user(ref)
        except (Forbidden, ApiError) as error:
            if not skip or getattr(error, "http_status", error.status) not in (403, 404):
                raise
            print_note(f"Skipped {ref.shown_name}: {error.message}")
            continue
        found[name] = _NewEntry(ref, address, user)
    if not found:
        raise CommandError("You get no certificate for any of the clusters.")
    return found


def _issued(
    client: "Client", ref: ClusterRef, options: EntryOptions, cluster: "JsonObject"
) -> "ValidatedKubeconfig":
    from clustercert.cli.kubeconfig.request import CertificateRequest, kind_of, token_notes

    lifetime = LifetimeOptions(expires_in=options.expires_in)
    request = CertificateRequest(
        ref.project_id, ref.cluster_id, lifetime, not options.service_key, kind=kind_of(cluster)
    )
    issued = request.send(client)
    for note in token_notes(issued):
        print_note(f"{ref.shown_name}: {note}")
    return issued


def _write(plan: _Plan, new: dict[str, _NewEntry], *, use: bool) -> list[dict[str, object]]:
    """Write the entries. Returns the rows of the new contexts."""
    by_file: dict[Path, dict[str, _NewEntry]] = {}
    for name, entry in new.items():
        by_file.setdefault(plan.target(name), {})[name] = entry
    before = next((config.current for config in plan.configs.values() if config.current), None)
    first, current_file = next(iter(new)), files.default_target(plan.files)
    current = first if use or before is None else before
    if current != before:
        by_file.setdefault(current_file, {})
    rows = []
    for path, in_file in by_file.items():
        # Change each file only once, so that the backup contains the file as it was before the command.
        used = current if current != before and path == current_file else None
        files.change(path, partial(_put, path=path, new=in_file, current=used))
        for name, entry in in_file.items():
            server = str(entry.address["server"])
            if name in plan.present:
                print_note(f"{name}: already the context of {entry.ref.shown_name} at {server}, in {path}")
            else:
                print_note(f"{name}: the cluster {entry.ref.cluster} at {server}, in {path}")
            if warning := address_warning(entry.address):
                print_note(warning)
            rows.append(row_of_context(Merged(name, entry.ref, server, entry.user), path, current, {}))
    if current != before:
        print_note(f"The current context is {current}.")
    elif current != first and sys.stderr.isatty():
        print_note(
            f"The current context stays {current}. Switch with `clustercert kubeconfig use {shlex.quote(first)}`."
        )
    return rows


def _put(
    config: KubeconfigDocument, *, path: Path, new: Mapping[str, _NewEntry], current: str | None
) -> None:
    """Put the new entries into a locked file.

    Checks again whether other programs have added entries with the same names in the meantime.
    """
    for name, entry in new.items():
        entries.check_owner(config, path, name, entry.ref)
        entries.put(config, name, *entry)
    if current is not None:
        config.value[CURRENT] = current
