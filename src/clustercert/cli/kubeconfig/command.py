"""`clustercert kubeconfig`: kubeconfigs from a running service."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clustercert.cli.commands import expand_options
from clustercert.cli.kubeconfig import contexts, entries, merge, unmerge
from clustercert.cli.login.options import LoginOptions
from clustercert.cli.options import (
    ClusterArgument,
    CommandError,
    ContextNameOption,
    InsecureOption,
    LifetimeOptions,
    ProjectDomainOption,
    UnknownName,
    UsageError,
)
from clustercert.cli.terminal.output import Output, document, print_note, write_out
from clustercert.model.kubeconfigs import FILE_TEMPLATE, ClusterRef, issued_addresses, one_context
from clustercert.model.times import rfc3339
from clustercert.secure_file import write_private

if TYPE_CHECKING:
    from clustercert.cli.kubeconfig.validation import ValidatedKubeconfig
    from clustercert.cli.login.profile import Profile
    from clustercert.model import JsonObject

app = typer.Typer(
    name="kubeconfig",
    help="Merge clusters into your kubeconfig, or get separate files.",
    no_args_is_help=True,
)

app.command("merge")(merge.merge)
app.command("unmerge")(unmerge.unmerge)
app.command("use")(contexts.use)
app.command("list")(contexts.list_merged)

_STANDARD_OUTPUT = Path("-")
# Matches the contexts for a cluster's additional addresses. Issued kubeconfigs have these contexts, but the service's
# list of clusters does not.
_SAN_CONTEXT = re.compile(r"customSAN-[0-9]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class FileOptions:
    """The options for the kubeconfig file. Raises CommandError if the file exists already or its folder is missing."""

    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a file, mode 0600. [default: standard output]")
    ] = None
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False
    output: Annotated[
        Literal["yaml", "json"], typer.Option("--output", "-o", metavar="FORMAT", help="yaml or json.")
    ] = "yaml"

    def __post_init__(self) -> None:
        if self.out is None or self.out == _STANDARD_OUTPUT:
            return
        if self.out.exists() and not self.force:
            raise CommandError(
                f"The file {self.out} exists. Name another file, or add --force to replace it."
            )
        if not self.out.resolve().parent.is_dir():
            raise CommandError(f"The folder of {self.out} does not exist. Create it first.")

    def write(self, kubeconfig: "JsonObject") -> None:
        text = document(kubeconfig, Output(self.output))
        if self.out is None or self.out == _STANDARD_OUTPUT:
            write_out(text)
            return
        try:
            write_private(self.out, text)
        except OSError as error:
            raise CommandError(f"The file {self.out} can't be written: {error.strerror}.") from error


@app.callback()
def kubeconfig() -> None:
    """Merge clusters into your kubeconfig, or get separate files.

    The commands use the saved login, a job's variables (CLUSTERCERT_URL) or OpenStack's variables (OS_AUTH_URL).
    """


@dataclass(frozen=True, slots=True)
class ContextOptions:
    """The options for the contexts in the file."""

    context: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Address to use, such as internal. [default: a verified address]"),
    ] = None
    insecure: InsecureOption = False
    context_name: ContextNameOption = FILE_TEMPLATE
    cce_names: Annotated[
        bool,
        typer.Option("--cce-names", help="Write all addresses, under the names of CCE, such as internal."),
    ] = False

    def __post_init__(self) -> None:
        entries.parse_template(self.context_name)

    def check(self, cluster: "JsonObject", ref: ClusterRef, user: str) -> None:
        """Raise CommandError if the cluster has no such context, or if an option is not valid for the cluster.

        Callers check the options before they request a certificate.
        """
        entries.context_name(self.context_name, ref, user)
        entries.check_insecure(cluster, insecure=self.insecure)
        if self.context is None or _SAN_CONTEXT.fullmatch(self.context):
            return
        contexts = entries.listed_addresses(cluster)
        if self.context not in contexts:
            raise UnknownName(
                f"Kubeconfigs for this cluster have no context {self.context}. They have: {', '.join(contexts)}. If "
                "the cluster has further addresses, its kubeconfigs also have customSAN-0 and so on."
            )

    def document(self, kubeconfig: "ValidatedKubeconfig", ref: ClusterRef, user: str) -> "JsonObject":
        """Return the content of the kubeconfig file.

        Raises CommandError if kubectl can't check the API server's certificate and --insecure is not given.
        """
        if self.cce_names:
            if self.context in kubeconfig.contexts:
                kubeconfig.document["current-context"] = self.context
            return kubeconfig.document
        chosen = self.context if self.context in kubeconfig.contexts else None
        addresses = issued_addresses(kubeconfig.document)
        address = entries.verified_address(addresses, internal=False, insecure=self.insecure, only=chosen)
        name = entries.context_name(self.context_name, ref, user)
        return one_context(name, address, dict(kubeconfig.credential))


@app.command()
@expand_options
def get(
    cluster: ClusterArgument,
    lifetime_options: LifetimeOptions,
    file: FileOptions,
    login: LoginOptions,
    context_options: ContextOptions,
    local_key: Annotated[
        bool, typer.Option("--local-key", help="Create the private key on this machine, where it stays.")
    ] = False,
    project: Annotated[
        str | None,
        typer.Option(
            metavar="PROJECT",
            help="Project of the cluster; required if several projects have a cluster of this name.",
        ),
    ] = None,
    domain: ProjectDomainOption = None,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Reason, for the audit log.")] = None,
    access_request: Annotated[
        str | None,
        typer.Option(
            "--request", metavar="REQUEST", help="Id of the access request whose groups the certificate gets."
        ),
    ] = None,
) -> None:
    """Get a kubeconfig with a new certificate or token for a cluster in any of your projects.

    OpenStack's variables are used with --from-env, or if there is no saved login: OS_AUTH_URL, OS_USERNAME,
    OS_PASSWORD, OS_PROJECT_NAME, OS_USER_DOMAIN_NAME, OS_TOKEN, OS_ACCESS_KEY, OS_SECRET_KEY, OS_CACERT.

    Examples:
        clustercert kubeconfig get prod --local-key --out prod.yaml
        clustercert kubeconfig get prod --from-env --duration 1 --out prod.yaml
    """
    from clustercert.cli.credential.access_request import full_id
    from clustercert.cli.kubeconfig.request import CertificateRequest, kind_of
    from clustercert.cli.lookup import reachable_cluster

    lifetime_options.issue_options()
    chosen = login.profile()
    with chosen.explain_rejection(), chosen.client() as client:
        found = reachable_cluster(client, chosen, cluster, project, domain)
        ref = ClusterRef.parse(login.label, chosen.shown_user, found)
        context_options.check(found, ref, chosen.user)
        kind = kind_of(found)
        if local_key and kind == "token":
            raise UsageError(
                f"The credentials of {ref.cluster} are tokens, which have no key. Leave out --local-key."
            )
        request_id = full_id(client, access_request) if access_request is not None else None
        request = CertificateRequest(
            ref.project_id, ref.cluster_id, lifetime_options, local_key, reason, request_id, kind
        )
        kubeconfig = request.send(client)
    document = context_options.document(kubeconfig, ref, chosen.user)
    file.write(document)
    _report(kubeconfig, chosen, document, context_options.context)


def _report(
    kubeconfig: "ValidatedKubeconfig", login: "Profile", document: "JsonObject", context: str | None
) -> None:
    from clustercert.cli.kubeconfig.request import token_notes

    named = f" ({kubeconfig.username})" if kubeconfig.username != login.user else ""
    is_token = kubeconfig.token_expires_at is not None
    groups = "" if is_token else f" with the groups {', '.join(kubeconfig.groups) or 'none'}"
    print_note(f"For {login.shown_user}{named}{groups}, valid until {rfc3339(kubeconfig.not_after)}")
    for note in token_notes(kubeconfig):
        print_note(note)
    if warning := entries.current_address_warning(document):
        print_note(warning)
    if context is not None and context not in kubeconfig.contexts:
        raise CommandError(
            f"The kubeconfig is valid, but has no context {context}. The current context is "
            f"{document['current-context']}. Contexts: {', '.join(kubeconfig.contexts)}."
        )
