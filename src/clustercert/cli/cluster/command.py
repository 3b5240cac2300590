"""`clustercert cluster` and `clusters`: the Kubernetes clusters for which certificates are issued."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from clustercert.cli.administration.resources import RESOURCES
from clustercert.cli.cluster import ca as cluster_ca
from clustercert.cli.cluster import token_access
from clustercert.cli.cluster.token_access import (
    Administrator,
    GroupRoleChangeOptions,
    NewGroupRoleOptions,
)
from clustercert.cli.commands import expand_options, on_service
from clustercert.cli.login.options import LoginOptions
from clustercert.cli.lookup import (
    cluster_path,
    clusters_of_caller,
    find_cluster,
    find_project,
    reachable_clusters,
    shown_cluster,
)
from clustercert.cli.options import (
    ClusterArgument,
    DomainOption,
    FollowFilesOption,
    InProjectOption,
    InvalidOption,
    KubeContextOption,
    LabelFilterOption,
    OnlyProjectOption,
    ProjectDomainOption,
    UsageError,
    YesOption,
    parse_labels,
    parse_pairs,
    parse_seconds,
    read_file,
    require_kubeconfig,
)
from clustercert.cli.session import CLUSTER_ID
from clustercert.cli.terminal.output import (
    Output,
    OutputOption,
    is_wide,
    print_note,
    show_list,
    show_one,
    with_domain,
    with_times,
)
from clustercert.cli.terminal.prompts import confirm, read_secret
from clustercert.model.choices import MAX_TTL_SECONDS, WebhookMode
from clustercert.model.enforcement import ENFORCEMENT_WORDS, enforcement_text
from clustercert.model.kubernetes import ACCESS_NAMESPACE, TOKEN_SIGNER, USERS_NAMESPACE

if TYPE_CHECKING:
    from clustercert.cli.kubeconfig.cluster_import import ImportedCluster
    from clustercert.client.administration import AdministrationClient
    from clustercert.model import JsonObject
    from clustercert.model.choices import EnforcementState

cluster = typer.Typer(name="cluster", help=RESOURCES["cluster"].help, no_args_is_help=True)
cluster.add_typer(cluster_ca.app)

_COLUMNS = ("name", "project", "version", "internal_url", "external_url", "id", "verified_at")
# Fields of a cluster that the commands do not show. `cluster ca show --bundle` prints the CAs.
_HIDDEN = frozenset({"server_ca", "client_ca"})
# The signer of clusters that sign with their own CA.
_CLUSTER_SIGNS = "csr_api"
# A token of a service account has a few kilobytes.
_MAX_TOKEN = 16 * 1024
# The maximum number of Kubernetes groups in a table cell, except with `--output wide`.
_MAX_GROUPS = 3


def _parse_ttl(text: str) -> int:
    return parse_seconds(text, MAX_TTL_SECONDS)


@dataclass(frozen=True, slots=True)
class AddressOptions:
    """The options for the address and CA of a cluster's API server."""

    internal_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Address of the API server in its network: https://host:port."),
    ] = None
    server_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CA of the API server's certificate (PEM).")
    ] = None
    from_kubeconfig: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Read address and CA from a kubeconfig, or from standard input (-). Programs in the kubeconfig are"
            " not run.",
        ),
    ] = None
    kube_context: KubeContextOption = None
    follow_files: FollowFilesOption = False

    def read(self) -> tuple[str | None, bytes | None]:
        """Return the API server's address and CA. Each is `None` if no option gives it.

        Explicit options override the kubeconfig.
        """
        url, ca_pem, _ = self.read_all()
        return url, ca_pem

    def read_all(
        self, *, need_credential: bool = False
    ) -> "tuple[str | None, bytes | None, ImportedCluster | None]":
        """Like `read`, but also return the cluster in the kubeconfig; `None` without a kubeconfig."""
        url, ca_pem = self.explicit()
        if self.from_kubeconfig is None:
            require_kubeconfig(self.kube_context, follow_files=self.follow_files)
            return url, ca_pem, None
        from clustercert.cli.kubeconfig import cluster_import

        found = cluster_import.read(
            self.from_kubeconfig,
            self.kube_context,
            need_ca=ca_pem is None,
            follow_files=self.follow_files,
            need_credential=need_credential,
        )
        if found.skipped_fields:
            print_note(f"Not imported from the context {found.context}: {', '.join(found.skipped_fields)}.")
        return url or found.server, ca_pem or found.ca_pem, found

    def explicit(self) -> tuple[str | None, bytes | None]:
        """Return the address and the CA that options other than --from-kubeconfig give."""
        return self.internal_url, read_file(self.server_ca) if self.server_ca is not None else None


@dataclass(frozen=True, slots=True)
class DetailOptions:
    """The options for a cluster's properties other than its name, internal address and CA."""

    external_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Public address of the API server.")
    ] = None
    san_url: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Further address in the API server's certificate. Repeatable."),
    ] = None
    api_server: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Address of one API server, at which new client CAs are proved. Repeat the option for "
            "every API server. Only for operators.",
        ),
    ] = None
    discover_api_servers: Annotated[
        bool | None,
        typer.Option(
            "--discover-api-servers/--no-discover-api-servers",
            help="Prove a new client CA at the addresses in the cluster's EndpointSlices. Needs --admission or "
            "--credential-role. Only for operators.",
        ),
    ] = None
    version: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Kubernetes version, such as v1.32, for display.")
    ] = None
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Label. Repeatable.")] = None

    def __post_init__(self) -> None:
        parse_labels(self.label)

    def changes(self, before: "JsonObject") -> "JsonObject":
        """Return the API fields to change. `before` contains the cluster's current fields."""
        labels = {**_mapping(before["labels"]), **parse_labels(self.label)} if self.label else None
        return _given(
            external_url=self.external_url,
            san_urls=self.san_url or None,
            api_servers=self.api_server or None,
            discover_api_servers=self.discover_api_servers,
            version=self.version,
            labels=labels,
        )


@dataclass(frozen=True, slots=True)
class DetailChangeOptions(DetailOptions):
    """The options that change a cluster's properties other than its name, internal address and CA."""

    no_external_url: Annotated[bool, typer.Option("--no-external-url", help="Remove the public address.")] = (
        False
    )
    no_san_urls: Annotated[bool, typer.Option("--no-san-urls", help="Remove all further addresses.")] = False
    no_api_servers: Annotated[
        bool, typer.Option("--no-api-servers", help="Remove all addresses of API servers.")
    ] = False
    remove_label: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Remove a label. Repeatable.")
    ] = None

    def __post_init__(self) -> None:
        DetailOptions.__post_init__(self)
        pairs = (
            (self.external_url, self.no_external_url),
            (self.san_url, self.no_san_urls),
            (self.api_server, self.no_api_servers),
        )
        if any(given and removed for given, removed in pairs):
            raise InvalidOption("Give an option or its --no- form, not both.")

    def changes(self, before: "JsonObject") -> "JsonObject":
        """Return the API fields to change. `before` contains the cluster's current fields."""
        fields = DetailOptions.changes(self, before)
        if self.no_external_url:
            fields["external_url"] = None
        if self.no_san_urls:
            fields["san_urls"] = []
        if self.no_api_servers:
            fields["api_servers"] = []
        kept = {
            key: value
            for key, value in _mapping(before["labels"]).items()
            if key not in (self.remove_label or ())
        }
        return fields | {"labels": {**kept, **parse_labels(self.label)}}


@dataclass(frozen=True, slots=True)
class EnforcementOptions:
    """The options for how a new cluster enforces revocations. `None` means the default."""

    webhook_mode: Annotated[
        WebhookMode | None,
        typer.Option(
            help="Webhook's response for certificates from other issuers: no opinion (default), or denied."
        ),
    ] = None
    exempt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="User or group that is exempt from the mode known-only, such as kubeadm:cluster-admins. "
            "Repeatable.",
        ),
    ] = None
    pin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FINGERPRINT",
            help="Fingerprint of a certificate with an exempt name, such as a component's certificate. Its "
            "use raises no alert. Repeatable.",
        ),
    ] = None
    pin_components: Annotated[
        bool | None,
        typer.Option(
            "--pin-components/--no-pin-components",
            help="In the mode known-only, deny certificates that have exempt names but were not given with "
            "--pin. When a component's certificate is renewed, pin the new certificate before the component uses it.",
        ),
    ] = None
    listed_master: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FINGERPRINT",
            help="Fingerprint of a certificate in the group system:masters. Its use "
            "raises no alert. Repeatable.",
        ),
    ] = None
    credential_role: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE=CLUSTERROLE",
            help="Give each certificate from this policy rule its own group instead of the rule's groups. The"
            " group is bound to the ClusterRole until the certificate is revoked. Repeatable.",
        ),
    ] = None
    admission: Annotated[
        bool | None,
        typer.Option(
            "--admission/--no-admission",
            help="Keep the ids of revoked certificates in the cluster, for its ValidatingAdmissionPolicy.",
        ),
    ] = None
    unauthorized_ttl: Annotated[
        int | None,
        typer.Option(
            parser=_parse_ttl,
            metavar="DURATION",
            help="How long the API server caches the webhook's denials. A revoked certificate that is used "
            "after this time is reported.",
        ),
    ] = None

    def __post_init__(self) -> None:
        self.parse_roles()

    def parse_roles(self) -> dict[str, str]:
        """Parse `--credential-role` into the ClusterRole for each rule. Raises InvalidOption."""
        return parse_pairs(self.credential_role, "RULE=CLUSTERROLE", "--credential-role")

    def print_next_step(self, cluster_id: object) -> None:
        """Print the next steps, if the options take effect only after changes in the Kubernetes cluster."""
        if self.admission is False:
            print_note(
                f"Next: run `clustercert kubernetes setup {cluster_id} --out DIR --force` with DIR of the earlier run,"
                " and follow step 1 of DIR/README.md, which deletes the policy from the cluster."
            )
        if self.pin_components is not None:
            print_note(
                f"Next: run `clustercert kubernetes setup {cluster_id} --out DIR --force`, and do steps 2 "
                "and 3 of DIR/README.md. authorization-config.yaml decides for which certificates the API "
                "server calls the webhook."
            )
        if self.credential_role or self.admission:
            print_note(
                f"Next: run `clustercert kubernetes setup {cluster_id} --out DIR` and apply the manifests for the "
                "cluster. The manifests give the service the permissions that it needs in the cluster."
            )

    def changes(self, before: "JsonObject") -> "JsonObject":
        """Return the API fields to change. `before` contains the cluster's current fields."""
        fields = _given(
            webhook_mode=self.webhook_mode,
            pin_components=self.pin_components,
            admission=self.admission,
            unauthorized_ttl_seconds=self.unauthorized_ttl,
        )
        for field, added in (
            ("exemptions", self.exempt),
            ("pins", _fingerprints(self.pin)),
            ("listed_masters", _fingerprints(self.listed_master)),
        ):
            if added:
                fields[field] = list(dict.fromkeys([*_strings(before[field]), *added]))
        if roles := self.parse_roles():
            fields["credential_roles"] = {**_mapping(before["credential_roles"]), **roles}
        return fields


@dataclass(frozen=True, slots=True)
class EnforcementChangeOptions(EnforcementOptions):
    """The options that change how a cluster enforces revocations. An option that is `None` changes nothing."""

    remove_exempt: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Remove an exemption. Repeatable.")
    ] = None
    remove_pin: Annotated[
        list[str] | None, typer.Option(metavar="FINGERPRINT", help="Remove a pin. Repeatable.")
    ] = None
    remove_listed_master: Annotated[
        list[str] | None,
        typer.Option(metavar="FINGERPRINT", help="Raise alerts for this certificate again. Repeatable."),
    ] = None
    no_credential_roles: Annotated[
        bool,
        typer.Option(
            "--no-credential-roles",
            help="Give new certificates the policy's groups again. Existing bindings stay until their certificates"
            " expire or are revoked.",
        ),
    ] = False

    def __post_init__(self) -> None:
        EnforcementOptions.__post_init__(self)
        if self.credential_role and self.no_credential_roles:
            raise InvalidOption("Give only one of --credential-role and --no-credential-roles.")

    def changes(self, before: "JsonObject") -> "JsonObject":
        """Return the API fields to change. `before` contains the cluster's current fields."""
        fields = EnforcementOptions.changes(self, before)
        for field, removed in (
            ("exemptions", self.remove_exempt),
            ("pins", _fingerprints(self.remove_pin)),
            ("listed_masters", self.remove_listed_master),
        ):
            if removed:
                current = _strings(fields.get(field, before[field]))
                fields[field] = [each for each in current if each not in removed]
        if self.no_credential_roles:
            fields["credential_roles"] = {}
        return fields


@dataclass(frozen=True, slots=True)
class SignerTokenOptions:
    """The credential of a signer that asks the cluster to sign."""

    signer_token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Token of the service account with which the signer csr_api or token logs in to the cluster, from"
            " `kubectl create token`; - for standard input. Only for operators.",
        ),
    ] = None

    def fields(self) -> "JsonObject":
        """Read the token. Returns the API fields to send."""
        if self.signer_token_file is None:
            return {}
        instead = "add --signer-token-file FILE"
        return {"signer_token": read_secret("Token", self.signer_token_file, instead, longest=_MAX_TOKEN)}


@dataclass(frozen=True, slots=True)
class SignerOptions(SignerTokenOptions):
    """The signer of a new cluster."""

    signer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Signer of the cluster's certificates: pkcs11 for a key in a PKCS #11 token, csr_api to "
            "let the cluster sign. Only for operators. [default: local]",
        ),
    ] = None

    def fields(self) -> "JsonObject":
        """Read the token. Returns the API fields to send."""
        return SignerTokenOptions.fields(self) | _given(signer=self.signer)


def _given(**fields: object) -> "JsonObject":
    """Return the fields whose options were given."""
    return {field: value for field, value in fields.items() if value is not None}


def _fingerprints(given: Sequence[str] | None) -> list[str]:
    """Return the fingerprints as the service writes them, without colons and in lower case."""
    return [each.lower().replace(":", "") for each in given or ()]


def _strings(value: object) -> list[str]:
    return cast("list[str]", value)


def _mapping(value: object) -> Mapping[str, str]:
    return cast("Mapping[str, str]", value)


@cluster.command()
@on_service
def add(
    client: "AdministrationClient",
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name, unique in the project.")],
    project: Annotated[str, typer.Option(metavar="PROJECT", help="Project that owns the cluster.")],
    address: AddressOptions,
    details: DetailOptions,
    enforcement: EnforcementOptions,
    signer: SignerOptions,
    roles: NewGroupRoleOptions,
    domain: DomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Register a cluster and create its client CA. Only for operators and admins of the project.

    Then configure the API server to trust the CA: see `clustercert kubernetes setup`. With --credential token, the
    cluster needs no client CA and no setup: the command writes the objects that the service needs into the cluster,
    with the administrator's credential in the kubeconfig. This credential is neither sent to the service nor stored.
    Name a role for each group: --group-role dev=clusterrole/edit@shop --group-role audit=clusterrole/view.

    Examples:
        clustercert cluster add prod --project eu-de --from-kubeconfig admin.conf
        clustercert cluster add prod --project acme/eu-de --from-kubeconfig -
    """
    from clustercert.client.administration import path_of

    if CLUSTER_ID.fullmatch(name):
        raise UsageError(f"name: {name} looks like an id. Choose another name for the cluster.")
    is_token = _wants_tokens(signer, roles)
    options = roles.after(token_access.options_of(RESOURCES["cluster"].defaults))
    needs_administrator = is_token and roles.out is None and signer.signer_token_file is None
    internal_url, ca_pem, imported = address.read_all(need_credential=needs_administrator)
    if is_token and roles.out is not None:
        documents = token_access.objects(client, options)
        token_access.print_next_steps(name, token_access.write_objects(roles.out, documents))
        return
    if internal_url is None or ca_pem is None:
        raise InvalidOption("Give --internal-url and --server-ca, or --from-kubeconfig.")
    fields: JsonObject = {"internal_url": internal_url, "server_ca": ca_pem.decode("ascii", "replace")}
    defaults = RESOURCES["cluster"].defaults | {"labels": {}}
    fields |= details.changes(defaults) | enforcement.changes(defaults) | signer.fields()
    owner = find_project(client, project, domain)
    path = path_of("projects", str(owner["id"]), "clusters", name)
    if is_token:
        fields |= token_access.fields_of(options) | {"signer": TOKEN_SIGNER}
        if needs_administrator:
            if imported is None:
                raise InvalidOption(
                    "Give --from-kubeconfig with an administrator's kubeconfig, or write the objects with --out FILE."
                )
            administrator = Administrator(imported.server, ca_pem, imported)
            added = token_access.add(client, path, fields, options, administrator, yes=roles.yes)
        else:
            added = client.create(path, fields)
        show_one(_row(added, owner["name"], owner["domain"]), output)
        print_note(
            f"Next: run `clustercert kubernetes verify {added['id']}`. Then users run `clustercert kubeconfig merge "
            f"{name}`."
        )
        print_note(token_access.CLIENTS_OF_CCE)
        return
    added = client.create(path, fields)
    show_one(_row(added, owner["name"], owner["domain"]), output)
    if added["signer"] == _CLUSTER_SIGNS:
        print_note(
            f"Next: run `clustercert kubernetes setup {added['id']} --out DIR`, and follow DIR/README.md, so that the"
            " cluster denies revoked certificates. The API server trusts the client CA already. As a minimum, apply"
            " DIR/rbac.yaml."
        )
        enforcement.print_next_step(added["id"])
        return
    print_note(
        f"Next: run `clustercert kubernetes setup {added['id']} --out DIR`, and follow DIR/README.md. Unless kubeadm "
        "made the cluster, add --distribution. As a minimum, write a new file with the API server's present client"
        " CAs and DIR/client-ca.pem, name that file in --client-ca-file, and apply DIR/rbac.yaml. Don't append to"
        " kubeadm's ca.crt: pods and nodes also use it as the CA of the API server."
    )
    enforcement.print_next_step(added["id"])


def _wants_tokens(signer: SignerOptions, roles: NewGroupRoleOptions) -> bool:
    """Whether the new cluster's credentials are tokens. Raises InvalidOption if options exclude each other."""
    by_signer = signer.signer == TOKEN_SIGNER
    if roles.credential == "certificate" and by_signer:
        raise InvalidOption("The signer token issues no certificates. Leave out --signer or --credential.")
    if roles.credential == "token" and not (by_signer or signer.signer is None):
        raise InvalidOption(f"The signer {signer.signer} issues no tokens. Leave --signer out.")
    is_token = roles.credential == "token" or by_signer
    if is_token and not roles.group_role:
        raise InvalidOption(
            "Give at least one --group-role GROUP=ROLE, such as --group-role developers=clusterrole/view."
        )
    if not is_token and roles.is_given:
        raise InvalidOption(
            "--group-role, --allow-cluster-admin and --out are for clusters whose credentials are tokens. Add "
            "--credential token."
        )
    return is_token


@cluster.command("list")
@on_service
def list_clusters(
    client: "AdministrationClient",
    project: OnlyProjectOption = None,
    domain: ProjectDomainOption = None,
    without_reviews: Annotated[
        bool,
        typer.Option(
            "--without-reviews",
            help="List only clusters where revocations have no effect, because the API server never asked the webhook"
            " since it was set up, or did not ask the webhook about a known use. Only for operators, auditors and"
            " admins of a project.",
        ),
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the clusters in all your projects. Operators see the clusters of all projects.

    The column issuing_stopped appears if a cluster gets no new tokens. `clustercert cluster show` says why.

    Examples:
        clustercert cluster list --project eu-de
        clustercert cluster list --without-reviews
    """
    owner = find_project(client, project, domain)["id"] if project is not None else None
    found = [
        with_times(each)
        for each in clusters_of_caller(client)
        if owner in (None, each["project_id"]) and domain in (None, each["domain"], each["domain_id"])
    ]
    columns: tuple[str, ...] = _COLUMNS
    if without_reviews:
        selected = {each["id"] for each in found}
        silent = client.list_all("/fleet/clusters", "clusters", without_reviews="true")
        found = [with_times(each) for each in silent if each["id"] in selected]
        columns = ("name", "project", "webhook_called_at", "id")
        show_list(found, output, columns=with_domain(columns, found), keep=("webhook_called_at",))
        return
    if is_wide() or any(each["credential"] == "token" for each in found):
        columns = (*_COLUMNS[:2], "credential", *_COLUMNS[2:])
    if any(each["issuing_stopped"] for each in found):
        columns = (*columns[:2], "issuing_stopped", *columns[2:])
    show_list(found, output, columns=with_domain(columns, found))


@cluster.command()
@on_service
def show(
    client: "AdministrationClient",
    name: ClusterArgument,
    project: InProjectOption = None,
    domain: ProjectDomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show how a cluster is registered, and whether it is known to refuse revoked certificates.

    Only for operators and admins of the project.

    Examples:
        clustercert cluster show prod
    """
    found = find_cluster(client, name, project, domain)
    shown, report = client.get(cluster_path(found)), client.get(cluster_path(found, "access"), limit="1")
    state, called_at = cast("EnforcementState", report["enforcement"]), report["webhook_called_at"]
    reason = report["use_not_seen"]
    seen = with_times(
        {
            "enforcement": ENFORCEMENT_WORDS[state].label if output is Output.TABLE else state,
            "webhook_called_at": called_at,
            "use_after_revocation": "seen" if reason is None else "not seen",
        }
    )
    show_one(_row(shown, found["project"], found["domain"]) | seen, output)
    print_note(enforcement_text(state, cast("str | None", called_at)))
    if shown["problem"] is not None:
        print_note(f"Warning: This cluster gets no tokens now. {shown['problem']}")
    if reason is not None:
        print_note(str(reason))


@cluster.command()
@on_service
def update(
    client: "AdministrationClient",
    name: ClusterArgument,
    address: AddressOptions,
    details: DetailChangeOptions,
    enforcement: EnforcementChangeOptions,
    signer_token: SignerTokenOptions,
    roles: GroupRoleChangeOptions,
    project: InProjectOption = None,
    domain: ProjectDomainOption = None,
    rename: Annotated[str | None, typer.Option(metavar="NAME", help="New name.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Change a cluster. Options that you omit leave their values unchanged. The id and the client CA never change.

    With an option for roles of groups, --from-kubeconfig gives the administrator's credential for changes in the
    cluster, and does not change the registered address.

    Examples:
        clustercert cluster update prod --label stage=prod
        clustercert cluster update prod --webhook-mode known-only
        clustercert cluster update prod --remove-group-role dev
    """
    administrator = None
    if roles.is_given:
        _, known_ca, imported = address.read_all(need_credential=roles.out is None)
        if imported is not None and known_ca is not None:
            administrator = Administrator(imported.server, known_ca, imported)
        internal_url, ca_pem = address.explicit()
    else:
        internal_url, ca_pem = address.read()
    server_ca = ca_pem.decode("ascii", "replace") if ca_pem is not None else None
    fields = _given(name=rename, internal_url=internal_url, server_ca=server_ca) | signer_token.fields()
    found = find_cluster(client, name, project, domain)

    def changes(before: "JsonObject") -> "JsonObject":
        return fields | details.changes(before) | enforcement.changes(before)

    path = cluster_path(found)
    if roles.is_given:
        changed = token_access.change(client, path, client.get(path), roles, administrator, changes)
        if changed is None:
            return
    else:
        changed = client.change(path, changes)
    show_one(_row(changed, found["project"], found["domain"]), output)
    enforcement.print_next_step(changed["id"])


@cluster.command()
@on_service
def remove(
    client: "AdministrationClient",
    name: ClusterArgument,
    project: InProjectOption = None,
    domain: ProjectDomainOption = None,
    yes: YesOption = False,
) -> None:
    """Remove a cluster and the key of its client CA. The records of its certificates are kept.

    First follow the steps that `clustercert kubernetes remove` writes: the last step is this command.

    Examples:
        clustercert cluster remove old
    """
    from clustercert.cli.certificate.command import preview_of_all

    found = find_cluster(client, name, project, domain)
    path, shown = cluster_path(found), shown_cluster(client, str(found["name"]), str(found["id"]))
    removed, live = client.get(path), preview_of_all(client, path)["live"]
    if removed["credential"] == "token":
        confirm(
            f"Permanently remove the cluster {shown} ({found['id']}), which has {live} live credentials? First"
            " revoke them, and run `clustercert kubernetes remove`: afterwards, the service deletes nothing there.",
            yes=yes,
        )
        client.delete(path)
        print_note(
            f"Removed the cluster {shown}. Unless `clustercert kubernetes remove` was run before, delete the "
            f"namespaces {USERS_NAMESPACE} and {ACCESS_NAMESPACE} with kubectl, to end all credentials."
        )
        return
    question = (
        f"Permanently remove the cluster {shown} ({found['id']}), which has {live} live certificates, and its client "
        "CA's key?"
    )
    confirm(question, yes=yes)
    client.delete(path)
    print_note(
        f"Removed the cluster {shown}. Remove the client CA from its API server's --client-ca-file. Until "
        "then, the API server accepts issued certificates. It also accepts revoked certificates, unless the"
        " failurePolicy of its webhook is Deny."
    )
    if removed["credential_roles"]:
        print_note(
            "Delete the ClusterRoleBindings named clustercert:credential:…, which stay in the cluster."
        )


def _row(cluster: "JsonObject", project: object, domain: object) -> "JsonObject":
    shown = {name: value for name, value in cluster.items() if name not in _HIDDEN}
    owner = {"project": project, "domain": domain}
    return with_times({"id": shown.pop("id"), "name": shown.pop("name"), **owner, **shown})


@expand_options
def clusters(
    login: LoginOptions,
    label: LabelFilterOption = None,
    project: OnlyProjectOption = None,
    domain: ProjectDomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the clusters in all your projects, with the Kubernetes groups and the longest lifetime that you get.

    Examples:
        clustercert clusters
        clustercert clusters --label stage=prod --output name
    """
    labels = parse_labels(label)
    chosen = login.profile()
    with chosen.explain_rejection(), chosen.client() as client:
        found = reachable_clusters(client, project, domain, labels)
    if chosen.name is not None and not (labels or project or domain):
        from clustercert.cli.completion import save_names

        save_names(chosen.name, found)
    rows = [
        with_times({name: value for name, value in each.items() if name not in _HIDDEN}) for each in found
    ]
    if output is Output.TABLE:
        rows = [row | _granted(row) for row in rows]
    columns: tuple[str, ...] = ("name", "project", "groups", "lifetime", "labels")
    if is_wide():
        columns = (
            *columns,
            "requestable_groups",
            "version",
            "internal_url",
            "external_url",
            "verified_at",
            "id",
        )
    show_list(rows, output, columns=with_domain(columns, rows), keep=("lifetime", "groups"))


def _granted(cluster: "JsonObject") -> "JsonObject":
    """Return table cells for the certificate that the caller would get: the first groups, and the longest lifetime."""
    from clustercert.policy.lifetime import lifetime_text

    seconds = cast("int | None", cluster["longest_lifetime_seconds"])
    groups = cast("list[str]", cluster["groups"])
    if len(groups) > _MAX_GROUPS and not is_wide():
        groups = [*groups[: _MAX_GROUPS - 1], f"{len(groups) - _MAX_GROUPS + 1} more"]
    return {
        "groups": groups,
        "lifetime": lifetime_text(timedelta(seconds=seconds)) if seconds is not None else None,
    }
