"""How `clustercert cluster add` and `update` prepare clusters whose credentials are tokens of service accounts.

The objects are written with the administrator's credential, from the machine of the command line. Nothing of this
credential is sent to the service or stored.
"""

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self, TypeVar, cast

import typer

from clustercert.cli.options import CommandError, InvalidOption, YesOption
from clustercert.cli.terminal.output import print_note, write_out
from clustercert.cli.terminal.prompts import confirm
from clustercert.model.choices import CredentialKind
from clustercert.model.errors import ClustercertError, RemoteFailed, Unavailable
from clustercert.model.kubernetes import ACCESS_NAMESPACE, ISSUER_ACCOUNT, TOKEN_SIGNER

if TYPE_CHECKING:
    from clustercert.cli.kubeconfig.cluster_import import ImportedCluster
    from clustercert.client.administration import AdministrationClient
    from clustercert.kubernetes.cluster_objects import ObjectReference
    from clustercert.kubernetes.token_installation import TokenInstallation
    from clustercert.model import ClusterOptions, JsonObject

T = TypeVar("T")

_STANDARD_OUTPUT = Path("-")

CLIENTS_OF_CCE = (
    "Clients of CCE's API get no kubeconfig for this cluster: their types have no field for a token, so "
    "the service answers 409. Open Telekom Cloud's Terraform provider reads the kubeconfig at each "
    "refresh. Users get a kubeconfig with `clustercert kubeconfig`."
)
"""The warning about a new cluster whose credentials are tokens."""

_APPLY = "`kubectl apply -f {file}`"
_GROUP_ROLE = "--group-role"


@dataclass(frozen=True, slots=True)
class GroupRoleOptions:
    """The roles of groups in a cluster whose credentials are tokens, and what to do with the objects for them."""

    group_role: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GROUP=ROLE",
            help="Role that a group of the policy gets in a cluster whose credentials are tokens:"
            " clusterrole/NAME for the whole cluster, clusterrole/NAME@NAMESPACE or role/NAME@NAMESPACE."
            " Repeatable. Only for operators.",
        ),
    ] = None
    allow_cluster_admin: Annotated[
        bool | None,
        typer.Option(
            "--allow-cluster-admin/--no-allow-cluster-admin",
            help="Allow clusterrole/cluster-admin in --group-role. Holders of this role can create other ways"
            " into the cluster.",
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Only write the objects for `kubectl apply` into FILE, or to standard output (-), for a cluster"
            " whose credentials are tokens.",
        ),
    ] = None
    yes: YesOption = False

    def __post_init__(self) -> None:
        self.added()

    def added(self) -> dict[str, list[str]]:
        """Parse `--group-role` into the roles of each group. Raises InvalidOption."""
        from clustercert.model.group_roles import RoleGrant

        roles: dict[str, list[str]] = {}
        for text in self.group_role or ():
            # The name of a group may contain equals signs, but a role can't.
            group, equals, role = text.rpartition("=")
            if not equals or not group:
                raise InvalidOption(f"{text!r} is not of the form GROUP=ROLE.", param_hint=_GROUP_ROLE)
            try:
                roles.setdefault(group, []).append(str(RoleGrant.parse(role)))
            except ValueError as error:
                raise InvalidOption(str(error), param_hint=_GROUP_ROLE) from error
        return roles

    @property
    def is_given(self) -> bool:
        """Whether an option concerns the roles of groups."""
        return bool(self.group_role) or self.allow_cluster_admin is not None or self.out is not None

    def after(self, before: "ClusterOptions") -> "ClusterOptions":
        """Return the options of a cluster with these roles added. Raises InvalidOption if the map is invalid."""
        return self._changed(before, dict(before.group_roles))

    def _changed(self, before: "ClusterOptions", kept: Mapping[str, Sequence[str]]) -> "ClusterOptions":
        from dataclasses import replace

        from clustercert.model.group_roles import parse_group_roles

        added = self.added()
        merged = {group: [*kept.get(group, ()), *added.get(group, ())] for group in {**kept, **added}}
        allow = before.allow_cluster_admin if self.allow_cluster_admin is None else self.allow_cluster_admin
        try:
            parsed = parse_group_roles(merged, allow_cluster_admin=allow)
        except ValueError as error:
            hint = str(error).replace("Set allow_cluster_admin", "Add --allow-cluster-admin")
            raise InvalidOption(hint, param_hint=_GROUP_ROLE) from error
        group_roles = {group: tuple(map(str, roles)) for group, roles in parsed.items()}
        return replace(before, group_roles=group_roles, allow_cluster_admin=allow)


@dataclass(frozen=True, slots=True)
class NewGroupRoleOptions(GroupRoleOptions):
    """The kind of a new cluster's credentials, and the roles of groups."""

    credential: Annotated[
        CredentialKind | None,
        typer.Option(
            help="What users get: certificates of a client CA, or tokens of service accounts, for clusters whose API "
            "server nobody can configure. Needs --group-role. [default: certificate]"
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class GroupRoleChangeOptions(GroupRoleOptions):
    """The options that change the roles of groups."""

    remove_group_role: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GROUP[=ROLE]",
            help="Remove one role of a group, or all its roles. Repeatable. Only for operators.",
        ),
    ] = None
    objects_applied: Annotated[
        bool,
        typer.Option("--objects-applied", help="The objects that --out wrote are in the cluster already."),
    ] = False

    @property
    def is_given(self) -> bool:
        """Whether an option concerns the roles of groups."""
        removed = bool(self.remove_group_role)
        return super(GroupRoleChangeOptions, self).is_given or removed or self.objects_applied

    def after(self, before: "ClusterOptions") -> "ClusterOptions":
        """Return the options of a cluster with the roles added and removed. Raises InvalidOption."""
        kept = {group: list(roles) for group, roles in before.group_roles.items()}
        for text in self.remove_group_role or ():
            group, _, role = text.rpartition("=")
            if text in kept:
                del kept[text]
            elif role in kept.get(group, ()):
                kept[group].remove(role)
                if not kept[group]:
                    del kept[group]
            else:
                raise InvalidOption(
                    f"{text!r} is not in the map. `clustercert cluster show` lists the roles of groups.",
                    param_hint="--remove-group-role",
                )
        return self._changed(before, kept)


@dataclass(frozen=True, slots=True)
class Administrator:
    """The administrator's access to a cluster: an address, a CA and a credential from a kubeconfig."""

    server: str
    ca_pem: bytes
    imported: "ImportedCluster" = field(repr=False)

    def run(self, installation: str, work: "Callable[[TokenInstallation], Awaitable[T]]") -> T:
        """Run `work` in an event loop of its own. Raises ClustercertError."""
        import asyncio

        return asyncio.run(self.call(installation, work))

    async def call(self, installation: str, work: "Callable[[TokenInstallation], Awaitable[T]]") -> T:
        """Run `work` with a connection to the cluster. Raises ClustercertError, whose message has the address."""
        from clustercert.kube_api import ClientIdentity, KubeApi
        from clustercert.kubernetes.token_installation import TokenInstallation

        credential = self.imported.credential
        if credential is None:
            raise RuntimeError("the kubeconfig was read without its credential")
        identity = None
        if credential.chain_pem is not None and credential.key_pem is not None:
            identity = ClientIdentity(credential.chain_pem, b"\n" + credential.key_pem)
        with self._explained():
            async with KubeApi(self.server, self.ca_pem, identity) as api:
                if credential.token is not None:
                    api.use_token(credential.token)
                return await work(TokenInstallation(api, installation))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Add the address, and what to do, to errors of the connection."""
        from clustercert.http_client import UntrustedServer
        from clustercert.kubernetes.cluster_objects import ClusterRefused

        try:
            yield
        except ClusterRefused:
            raise
        except Unavailable as error:
            raise CommandError(
                f"{self.server}: {error.message} If only another machine reaches this address, write the objects with"
                " --out FILE, and apply the file with kubectl on that machine."
            ) from error
        except RemoteFailed as error:
            if isinstance(error.__cause__, UntrustedServer):
                raise CommandError(
                    f"The certificate of the API server at {self.server} is not signed by the CA of the "
                    "kubeconfig. Correct the CA, or name another CA with --server-ca."
                ) from error
            raise CommandError(
                f"{self.server}: {error.message.removesuffix(' Tell the operator.')}"
            ) from error


def installation_of(client: "AdministrationClient") -> str:
    """Return the id of the service's installation. Raises ClientError or CommandError."""
    from clustercert.merkle.notes import NoteError, VerifierKey
    from clustercert.model.kubernetes import installation_id

    try:
        return installation_id(VerifierKey.parse(client.text("/audit/log/key", "text/plain")).public_key)
    except NoteError as error:
        raise CommandError(
            f"The service sent no key of its audit log: {error}. Check the address of the service."
        ) from error


def options_of(cluster: "JsonObject") -> "ClusterOptions":
    """Return the roles of groups in a cluster's API object."""
    from clustercert.model import ClusterOptions

    roles = cast("Mapping[str, Sequence[str]]", cluster["group_roles"])
    return ClusterOptions(
        group_roles={group: tuple(texts) for group, texts in roles.items()},
        allow_cluster_admin=bool(cluster["allow_cluster_admin"]),
    )


def fields_of(options: "ClusterOptions") -> "JsonObject":
    """Return the API fields of the roles of groups."""
    return {
        "group_roles": {group: list(roles) for group, roles in options.group_roles.items()},
        "allow_cluster_admin": options.allow_cluster_admin,
    }


def objects(client: "AdministrationClient", options: "ClusterOptions") -> "list[JsonObject]":
    """Return the objects that a cluster with these options needs. Raises ClustercertError."""
    from clustercert.kubernetes.token_installation import installed_objects

    return installed_objects(installation_of(client), options)


def write_objects(path: Path, documents: "Sequence[JsonObject]") -> str:
    """Write the objects for `kubectl apply`. Returns the name of the file for use in a command. Raises OSError."""
    from clustercert.kubernetes.setup.documents import to_yaml

    text = to_yaml(documents)
    if path == _STANDARD_OUTPUT:
        write_out(text)
        return "FILE"
    path.write_text(text, encoding="utf-8")
    return str(path)


def add(
    client: "AdministrationClient",
    path: str,
    fields: "JsonObject",
    options: "ClusterOptions",
    administrator: Administrator,
    *,
    yes: bool,
) -> "JsonObject":
    """Prepare a cluster, and register it. Returns the API's object. Raises ClustercertError or typer.Exit."""
    # Before anything is written, let the service check the fields and the caller's rights.
    client.create(f"{path}?dryRun=All", fields)
    installation = installation_of(client)

    async def install(installed: "TokenInstallation") -> str:
        from clustercert.kube_api import KubeApi
        from clustercert.kubernetes.token_installation import wait_until_enforced
        from clustercert.model.clusters import Registration

        await installed.apply(documents, progress.report)
        token = await installed.new_token()
        async with KubeApi(administrator.server, administrator.ca_pem, None) as account:
            account.use_token(token)
            registration = Registration(
                name="",
                internal_url=administrator.server,
                server_ca_pem=administrator.ca_pem,
                options=options,
            )
            await wait_until_enforced(account, registration, installation)
        return token

    documents = _plan(administrator, installation, options)
    confirm(f"Write these objects into the cluster at {administrator.server}?", yes=yes)
    with _Progress(documents) as progress:
        token = administrator.run(installation, install)
        return client.create(path, {**fields, "signer_token": token})


def change(
    client: "AdministrationClient",
    path: str,
    cluster: "JsonObject",
    roles: GroupRoleChangeOptions,
    administrator: Administrator | None,
    changes: "Callable[[JsonObject], JsonObject]",
) -> "JsonObject | None":
    """Change a cluster and its roles of groups. Returns the API's object, or None if only the objects were written.

    New rights are written into the cluster first, then the map is changed, then rights that are not needed any more are
    deleted. Raises ClustercertError, OSError or typer.Exit.

    Args:
        changes: returns the other fields to change.
    """
    from dataclasses import replace

    from clustercert.kubernetes.token_installation import added_roles, installed_objects

    if cluster["signer"] != TOKEN_SIGNER:
        raise InvalidOption("Only a cluster whose credentials are tokens has roles of groups.")
    before = options_of(cluster)
    after = roles.after(before)
    both = replace(
        after,
        group_roles={
            group: (*before.group_roles.get(group, ()), *after.group_roles.get(group, ()))
            for group in {**before.group_roles, **after.group_roles}
        },
        allow_cluster_admin=before.allow_cluster_admin or after.allow_cluster_admin,
    )
    installation = installation_of(client)
    if roles.out is not None:
        file = write_objects(roles.out, installed_objects(installation, both))
        print_note(
            f"Next: run {_APPLY.format(file=file)}, and then this command again, with --objects-applied instead of "
            "--out."
        )
        return None
    added = added_roles(before, after)
    if added and administrator is None and not roles.objects_applied:
        raise InvalidOption(
            f"{', '.join(map(str, added))}: the service needs further rights in the cluster. Add --from-kubeconfig FILE"
            " with the kubeconfig of an administrator, or write the objects with --out FILE."
        )
    progress: _Progress | None = None
    if administrator is not None:
        _require_same_cluster(cluster, administrator)
        documents = _plan(administrator, installation, both, changed=True)
        confirm(f"Write these objects into the cluster at {administrator.server}?", yes=roles.yes)
        with _Progress(documents) as progress:
            administrator.run(installation, lambda installed: installed.apply(documents, progress.report))
    changed = client.change(
        path, lambda current: changes(current) | fields_of(roles.after(options_of(current)))
    )
    removed = added_roles(after, before)
    if administrator is not None:
        deleted = administrator.run(installation, lambda installed: _tidy(installed, after))
        if deleted:
            print_note(f"Deleted from the cluster: {', '.join(map(str, deleted))}.")
    elif removed:
        print_note(
            f"Existing credentials keep {', '.join(map(str, removed))}, and the service's account keeps the right to"
            " give these roles, until you run this command with --from-kubeconfig, or revoke the credentials."
        )
    return changed


async def _tidy(installed: "TokenInstallation", options: "ClusterOptions") -> "list[ObjectReference]":
    """Delete the objects that the map no longer needs. Returns the deleted objects."""
    stale = await installed.stale(options)
    if stale:
        await installed.apply(installed.documents(options), _ignore)
        await installed.delete(stale, _ignore)
    return stale


def _ignore(_reference: object, _result: str) -> None:
    """Report nothing."""


def _plan(
    administrator: Administrator, installation: str, options: "ClusterOptions", *, changed: bool = False
) -> "list[JsonObject]":
    """Check the cluster, and show what will be written. Returns the objects. Raises ClustercertError."""

    async def check(installed: "TokenInstallation") -> tuple[str, Sequence[str]]:
        user = await installed.check_administrator()
        if changed:
            await installed.require_installed(options)
        return user, await installed.check_cluster(options)

    from clustercert.kubernetes.token_installation import installed_objects

    user, notes = administrator.run(installation, check)
    documents = installed_objects(installation, options)
    print_note(f"Objects for the cluster at {administrator.server}, written as {user}:")
    show_objects(documents)
    for note in notes:
        print_note(f"Warning: {note}")
    return documents


def show_objects(documents: "Sequence[JsonObject]") -> None:
    """Print kind, namespace and name of each object as a note."""
    from clustercert.kubernetes.cluster_objects import reference_of

    print_references([reference_of(each) for each in documents])


def print_references(references: "Sequence[ObjectReference]") -> None:
    """Print kind, namespace and name of each object as a note."""
    rows = [(each.kind, each.namespace or "-", each.name) for each in references]
    kinds, namespaces = (max((len(row[at]) for row in rows), default=0) for at in (0, 1))
    for kind, namespace, name in rows:
        print_note(f"  {kind:{kinds}}  {namespace:{namespaces}}  {name}")


class _Progress:
    """Says what a failed or interrupted command has written so far, and how to go on."""

    def __init__(self, documents: "Sequence[JsonObject]") -> None:
        self._total = len(documents)
        self._written: list[str] = []

    def report(self, reference: "ObjectReference", _result: str) -> None:
        self._written.append(str(reference))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if error is not None and self._written:
            print_note(
                f"The cluster has {len(self._written)} of {self._total} objects now; the last one written is "
                f"{self._written[-1]}. To go on, run the same command again. To remove the objects, write them with "
                "--out FILE, and run `kubectl delete -f FILE`."
            )


def _require_same_cluster(cluster: "JsonObject", administrator: Administrator) -> None:
    """Raise CommandError if the kubeconfig is of another cluster: its address and its CA are both different."""
    san_urls = cast("list[str]", cluster["san_urls"])
    addresses = {cluster["internal_url"], cluster["external_url"], *san_urls}
    require_known_server(administrator, addresses, str(cluster["server_ca"]).encode())


def require_known_server(administrator: Administrator, addresses: Collection[object], ca_pem: bytes) -> None:
    """Raise CommandError unless the administrator's kubeconfig has one of the addresses, or one of the CAs."""
    from clustercert.pki.certificates import pem_fingerprints

    if administrator.server in addresses:
        return
    try:
        same = set(pem_fingerprints(administrator.ca_pem)) & set(pem_fingerprints(ca_pem))
    except (ClustercertError, ValueError):
        same = set()
    if not same:
        raise CommandError(
            f"The kubeconfig is for another cluster: neither its address {administrator.server} nor its CA is"
            " registered for this cluster. Name the right --context, or correct the address with `clustercert cluster"
            " update --internal-url`."
        )


def print_next_steps(name: str, file: str) -> None:
    """Print what to do with written objects of a new cluster."""
    print_note(
        f"Next: run {_APPLY.format(file=file)} and `kubectl create token {ISSUER_ACCOUNT} --namespace "
        f"{ACCESS_NAMESPACE} > TOKEN`. Then register the cluster: run `clustercert cluster add {name}` with the same "
        "options, but --signer-token-file TOKEN instead of --out."
    )
