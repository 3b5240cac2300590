"""`clustercert cluster ca`: the client CA of a cluster, and its rotation."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from clustercert.cli.commands import on_service
from clustercert.cli.kubernetes.selection import ClusterSelection, Notes, for_each_of_service
from clustercert.cli.lookup import (
    cluster_path,
    clusters_of_caller,
    find_cluster,
    find_project,
    full_name,
    is_in,
)
from clustercert.cli.options import (
    FAILED,
    ClusterArgument,
    InProjectOption,
    ProjectDomainOption,
    UnknownName,
    UsageError,
)
from clustercert.cli.terminal.output import (
    Output,
    OutputOption,
    print_note,
    show_list,
    show_one,
    with_domain,
    with_times,
    write_out,
)
from clustercert.cli.terminal.prompts import prompt_text, read_secret
from clustercert.model.ca_rotation import replace_cas
from clustercert.model.times import parse_rfc3339

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clustercert.client.administration import AdministrationClient
    from clustercert.model import JsonObject

app = typer.Typer(name="ca", help="Show and replace the client CA of a cluster.", no_args_is_help=True)

_ALL = "/client-ca-rotations"
# The maximum number of holders that a confirmation prompt lists.
_MAX_NAMES = 20
_CREDENTIAL_BYTES = 64 * 1024

DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Check the rights and the state, and show the result. Change nothing."),
]


@app.command()
@on_service
def show(
    client: "AdministrationClient",
    name: ClusterArgument,
    project: InProjectOption = None,
    domain: ProjectDomainOption = None,
    bundle: Annotated[
        bool,
        typer.Option(
            "--bundle",
            help="Print only the CAs that API servers must accept (PEM): during a rotation, the old and "
            "the new CA.",
        ),
    ] = False,
    access_policy: Annotated[
        bool,
        typer.Option(
            "--access-policy",
            help="Print only the policy that the service's account needs in the system that keeps the key.",
        ),
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a cluster's client CA: where its key is, and the key's properties. Only for operators and project admins.

    During a rotation, also names the CA that will sign (`next`), or the CA that signed before (`retiring`). `kubernetes
    setup` also writes the output of --bundle. Write this output and the API server's current client CAs into a new
    file, and name this file in the API server's flag --client-ca-file.

    Examples:
        clustercert cluster ca show prod
        clustercert cluster ca show prod --bundle
    """
    if bundle and access_policy:
        raise UsageError("Give either --bundle or --access-policy.")
    found = find_cluster(client, name, project, domain)
    if bundle:
        write_out(client.text(cluster_path(found, "client-cas", "bundle"), "application/x-pem-file"))
        return
    ca = client.get(cluster_path(found, "client-ca"))
    if access_policy:
        if not ca["access_policy"]:
            raise UsageError(f"The signer {ca['signer']} needs no policy.")
        write_out(str(ca["access_policy"]))
        return
    cas = _objects(client.get(cluster_path(found, "client-cas"))["client_cas"])
    others = {str(each["state"]): _ca_text(each) for each in cas if each["state"] in ("next", "retiring")}
    show_one((with_times(ca) if output is not Output.TABLE else _ca_row(ca)) | others, output, name="id")


@app.command()
@on_service
def rotate(
    client: "AdministrationClient",
    selection: ClusterSelection,
    signer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Signer that creates the new CA, and the cluster's later CAs. [default: the cluster's signer]",
        ),
    ] = None,
    signer_token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Read the credential that the signer needs for the cluster from FILE, or from standard input (-).",
        ),
    ] = None,
    auto_complete: Annotated[
        bool,
        typer.Option(
            "--auto-complete",
            help="Remove the old CA from the bundle as soon as none of its certificates is valid.",
        ),
    ] = False,
    deny_old: Annotated[
        bool,
        typer.Option(
            "--deny-old",
            help="Let the webhook deny certificates of the old CA as soon as the old CA is removed from "
            "the bundle.",
        ),
    ] = False,
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Replace the client CA without interrupting anybody. Only for operators.

    Creates a new CA, which signs certificates as soon as every API server is proved to accept the new CA. Until then,
    the old CA signs. With --dry-run, shows who holds certificates of the old CA, and creates nothing.

    Examples:
        clustercert cluster ca rotate prod --dry-run
        clustercert cluster ca rotate --all --project eu-de --auto-complete
    """
    fields: JsonObject = {"signer": signer, "auto_complete": auto_complete, "deny_old": deny_old}
    if signer_token_file is not None:
        advice = "add --signer-token-file FILE"
        fields["secret"] = read_secret("Credential", signer_token_file, advice, longest=_CREDENTIAL_BYTES)
    rotations = _Rotations(output, dry_run=dry_run)

    def start(cluster: "JsonObject") -> None:
        rotations.add(cluster, client.post(rotations.path(cluster), fields))

    for_each_of_service(selection.clusters_of_service(client), start, rotations.show)


@app.command()
@on_service
def status(
    client: "AdministrationClient", selection: ClusterSelection, output: OutputOption = Output.TABLE
) -> None:
    """Show the progress of rotations, and what to do next. Without arguments, shows all running rotations.

    For one cluster, also shows each API server, and the holders of certificates of the old CA. With --all or --label,
    also shows rotations that have ended.

    Examples:
        clustercert cluster ca status
        clustercert cluster ca status prod
    """
    rotations = _Rotations(output)
    if selection.names:
        chosen = selection.clusters_of_service(client)
        for_each_of_service(
            chosen,
            lambda cluster: rotations.add(cluster, client.get(rotations.path(cluster))),
            rotations.show,
        )
        return
    if selection.by_property:
        chosen, query = selection.clusters_of_service(client), {}
    else:
        chosen = [
            each for each in clusters_of_caller(client) if is_in(each, selection.project, selection.domain)
        ]
        query = {"state": "running"}
    path = _ALL
    if selection.project is not None:
        path = f"/projects/{find_project(client, selection.project, selection.domain)['id']}{_ALL}"
    found = {str(each["id"]): each for each in client.list_all(path, "rotations", **query)}
    for each in chosen:
        if (rotation := found.get(str(each["id"]))) is not None:
            rotations.add(each, rotation)
    empty = (
        "No client CA of these clusters was ever rotated."
        if selection.by_property
        else "No rotation of a client CA is running."
    )
    rotations.show(as_list=True, empty=empty)


@app.command()
@on_service
def complete(
    client: "AdministrationClient",
    selection: ClusterSelection,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Complete the rotation even if certificates of the old CA are valid. Asks for the number of"
            " these certificates.",
        ),
    ] = False,
    holders: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="With --force: the number of valid certificates of the old CA, from `status`.",
        ),
    ] = None,
    deny_old: Annotated[
        bool | None,
        typer.Option(
            "--deny-old/--no-deny-old",
            help="Let the webhook deny certificates of the old CA from now on. [default: as given to `rotate`]",
            show_default=False,
        ),
    ] = None,
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Remove the old CA from the bundle, and delete the key of the old CA once every API server refuses the old CA.

    Only for operators.

    Fails while certificates of the old CA are valid, unless --force is given. With --all or --label, completes the
    clusters whose rotation is running.

    Examples:
        clustercert cluster ca complete prod --dry-run
        clustercert cluster ca complete prod
    """
    if holders is not None and not force:
        raise UsageError("--holders needs --force.")
    if holders is not None and not selection.is_one:
        raise UsageError("--holders is the number for one cluster. Give the name of one cluster.")
    rotations = _Rotations(output, dry_run=dry_run)

    def ask_for_completion(cluster: "JsonObject") -> None:
        fields: JsonObject = {"deny_old": deny_old}
        if force:
            number = holders if holders is not None else _typed_number(client.get(rotations.path(cluster)))
            fields |= {"force": True, "holders": number} if number else {}
        rotations.add(cluster, client.post(rotations.path(cluster, "complete"), fields))
        if "holders" in fields and not dry_run:
            print_note(_sentence_for_holders(cluster))

    for_each_of_service(_running(client, selection), ask_for_completion, rotations.show)


@app.command()
@on_service
def abort(
    client: "AdministrationClient",
    selection: ClusterSelection,
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Abort a rotation. Only for operators.

    While the old CA signs (`planned`, `distributed`), `abort` ends the rotation, and deletes the key of the new CA.
    After the new CA has begun to sign, the rotation goes back to the old CA, in the same steps. Nothing changes if the
    rotation already goes back.

    Examples:
        clustercert cluster ca abort prod
    """
    rotations = _Rotations(output, dry_run=dry_run)

    def end(cluster: "JsonObject") -> None:
        aborted = client.post(rotations.path(cluster, "abort"))
        keys = _objects(aborted.pop("keys"))
        rotations.add(cluster, aborted)
        for key in keys:
            print_note(f"Key of the client CA {key['client_ca_id']}: {key['result']}")

    for_each_of_service(_running(client, selection), end, rotations.show)


@app.command()
@on_service
def prove(
    client: "AdministrationClient", selection: ClusterSelection, output: OutputOption = Output.TABLE
) -> None:
    """Prove from this machine which CAs the API servers accept, and report the results. Only for operators.

    Use this command for API servers that the service can't reach. Gets temporary certificates, and connects with these
    certificates to each API server. Exits with status 1 unless every API server accepts or refuses each certificate
    as the rotation requires. A proof counts for 10 minutes.

    Examples:
        clustercert cluster ca prove prod
    """
    rows: list[JsonObject] = []
    following = Notes()

    def try_all(cluster: "JsonObject") -> None:
        found, rotation = _proofs(client, cluster)
        rows.extend(found)
        following.add(full_name(cluster), str(rotation["next_step"]))

    def show_rows() -> None:
        if rows:
            columns = ("address", "ca", "outcome", "expected", "detail")
            several = len({row["cluster"] for row in rows}) > 1
            show_list(
                rows,
                output,
                columns=("cluster", *columns) if several else columns,
                name="address",
                keep=("address", "ca", "outcome"),
            )
            following.print("Next: ")

    for_each_of_service(_running(client, selection), try_all, show_rows)
    if any(row["outcome"] != row["expected"] for row in rows):
        raise typer.Exit(FAILED)


class _Rotations:
    """Collects the rotations that a command has started, changed or read, and shows them."""

    def __init__(self, output: Output, *, dry_run: bool = False) -> None:
        self._output = output
        self._dry_run = dry_run
        self._found: list[tuple[JsonObject, JsonObject]] = []

    def path(self, cluster: "JsonObject", *more: str) -> str:
        path = cluster_path(cluster, "client-ca-rotation", *more)
        return f"{path}?dryRun=All" if self._dry_run else path

    def add(self, cluster: "JsonObject", rotation: "JsonObject") -> None:
        self._found.append((cluster, rotation))

    def show(self, *, as_list: bool = False, empty: str = "") -> None:
        """Show one rotation with its API servers and holders, or a list of several rotations.

        Args:
            empty: the note to print instead of an empty list.
        """
        if len(self._found) == 1 and not as_list:
            _show_rotation(*self._found[0], self._output)
        elif self._found or as_list:
            self._show_list(empty)
        if self._dry_run:
            print_note("Dry run: nothing was changed.")
            return
        following = Notes()
        for cluster, rotation in self._found:
            alone = len(self._found) == 1
            step = str(rotation["next_step"]) if alone else _step_of_several(rotation)
            if step:
                following.add(full_name(cluster), step)
        following.print("Next: ")

    def _show_list(self, empty: str) -> None:
        rows = [
            _row(cluster, rotation) if self._output is Output.TABLE else _named(cluster, rotation)
            for cluster, rotation in self._found
        ]
        columns = (
            *("cluster", "project", "state", "accept_new", "refuse_old", "holders", "safe_at"),
            *("used_last_hour", "signer", "problem", "id"),
        )
        shown = with_domain(columns, rows) if self._output is Output.TABLE else columns
        show_list(
            rows,
            self._output,
            columns=shown,
            name="cluster",
            keep=("cluster", "state", "accept_new", "holders"),
            empty=empty,
        )


def _running(client: "AdministrationClient", selection: ClusterSelection) -> "list[JsonObject]":
    """Find the chosen clusters; with `--all` or `--label`, only those whose rotation is running."""
    chosen = selection.clusters_of_service(client)
    if not selection.by_property:
        return chosen
    running = {each["id"] for each in client.list_all(_ALL, "rotations", state="running")}
    if not (found := [each for each in chosen if each["id"] in running]):
        raise UnknownName("None of these clusters has a running rotation.")
    return found


def _show_rotation(cluster: "JsonObject", rotation: "JsonObject", output: Output) -> None:
    if output is not Output.TABLE:
        show_one(_named(cluster, rotation), output, name="cluster")
        return
    row = _row(cluster, rotation)
    fields: JsonObject = {"cluster": full_name(cluster)}
    fields |= {name: row[name] for name in ("state", "accept_new", "refuse_old")}
    fields |= {
        "started_by": rotation["started_by_name"] or rotation["started_by"],
        "since": _time(rotation["since"]),
        "new_ca": _ca_text(_object(rotation["new_ca"])),
        "old_ca": _ca_text(_object(rotation["old_ca"])),
        **{name: row[name] for name in ("holders", "used_last_hour")},
        "last_expires_at": _time(_object(rotation["old_ca_holders"])["until"]),
        "safe_at": row["safe_at"],
        **{name: rotation[name] for name in ("auto_complete", "deny_old", "reverses", "problem")},
    }
    show_one(fields, output)
    write_out("\n")
    servers = _objects(rotation["api_servers"])
    columns = ("address", "new_ca", "old_ca", "tried_at", "detail")
    rows = [
        each | {"tried_at": _time(max(str(each["new_ca_at"] or ""), str(each["old_ca_at"] or "")) or None)}
        for each in servers
    ]
    show_list(rows, output, columns=columns, name="address", keep=("new_ca", "old_ca"))
    if users := _objects(rotation["holders"]):
        write_out("\n")
        rows = [
            {
                "user": each["user_name"],
                "certificates": each["certificates"],
                "until": _time(each["until"]),
                "last_seen_at": _time(each["last_seen_at"]),
                "user_id": each["user_id"],
            }
            for each in users
        ]
        show_list(rows, output, columns=list(rows[0]), name="user")


def _named(cluster: "JsonObject", rotation: "JsonObject") -> "JsonObject":
    """Return the fields of a rotation, with the names of the cluster's project and domain."""
    return with_times(rotation) | {name: cluster[name] for name in ("project", "domain")}


def _row(cluster: "JsonObject", rotation: "JsonObject") -> "JsonObject":
    """Return the line of a rotation in a table."""
    servers, holders = _objects(rotation["api_servers"]), _object(rotation["old_ca_holders"])
    accepting = sum(each["new_ca"] == "accepted" for each in servers)
    refusing = sum(each["old_ca"] == "refused" for each in servers)
    is_asked = rotation["completion_asked_at"] is not None
    return {
        "cluster": cluster["name"],
        "project": cluster["project"],
        "domain": cluster["domain"],
        "state": rotation["state"],
        "accept_new": f"{accepting}/{len(servers)}",
        "refuse_old": f"{refusing}/{len(servers)}" if is_asked else None,
        "holders": holders["certificates"],
        "safe_at": _time(rotation["safe_at"]),
        "used_last_hour": holders["used_last_hour"],
        "signer": _object(rotation["new_ca"])["signer"],
        "problem": rotation["problem"],
        "id": rotation["id"],
    }


def _step_of_several(rotation: "JsonObject") -> str:
    """Return what the operator has to do for several clusters in the same state; empty for nothing."""
    is_asked = rotation["completion_asked_at"] is not None
    match rotation["state"]:
        case "planned":
            return replace_cas("CLUSTER", "the old and the new CA")
        case "draining" if is_asked:
            return replace_cas("CLUSTER", "the new CA")
        case "draining" if not _object(rotation["old_ca_holders"])["certificates"]:
            if any(each["new_ca"] != "accepted" for each in _objects(rotation["api_servers"])):
                return "The new CA is not proved at every API server. See `clustercert cluster ca status CLUSTER`."
            return "Run `clustercert cluster ca complete CLUSTER`. No certificate of the old CA is valid."
        case _:
            return ""


def _sentence_for_holders(cluster: "JsonObject") -> str:
    """Return what to tell users whose certificates lost access. kubectl's plugin keeps a cached certificate."""
    name = full_name(cluster)
    return (
        f'Tell the holders: "The client CA of {name} was replaced. Run `clustercert credential {shlex.quote(name)} '
        "--profile NAME --refresh >/dev/null`, with your profile for this cluster. If you use certificate files, run "
        '`clustercert refresh --all`."'
    )


def _typed_number(rotation: "JsonObject") -> int:
    """Ask for the number of valid certificates of the old CA; 0 if there are none. Raises UsageError."""
    found, users = _object(rotation["old_ca_holders"]), _objects(rotation["holders"])
    if not found["certificates"]:
        return 0
    names = [f"{each['user_name']} ({each['certificates']})" for each in users[:_MAX_NAMES]]
    more = [f"{len(users) - _MAX_NAMES} more users"] if len(users) > _MAX_NAMES else []
    print_note(
        f"{rotation['cluster']}: valid certificates of the old CA: {found['certificates']}, the last one "
        f"until {found['until']}. {found['used_last_hour']} of them were used within the last hour. The "
        f"holders of all these certificates lose access: {', '.join([*names, *more])}."
    )
    typed = prompt_text("Number of certificates that lose access", "add --holders N")
    try:
        return int(typed)
    except ValueError:
        raise UsageError(f"{typed!r} is not a number. Nothing was changed.") from None


def _proofs(client: "AdministrationClient", cluster: "JsonObject") -> "tuple[list[JsonObject], JsonObject]":
    """Try temporary certificates at the API servers, and report the results. Returns the results and the rotation."""
    from clustercert.cli.cluster.ca_proof import TemporaryCertificate
    from clustercert.cli.kubeconfig.validation import LocalKey
    from clustercert.kube_api import ClientIdentity
    from clustercert.pki.keys import key_pem

    key = LocalKey()
    made: Any = client.post(
        cluster_path(cluster, "client-ca-rotation", "certificates"), {"csr": key.csr_pem()}
    )
    rows: list[JsonObject] = []
    with client.check_format():
        for each in made["certificates"]:
            identity = ClientIdentity(each["certificate"].encode(), key_pem(key.private_key))
            certificate = TemporaryCertificate(identity, made["server_ca"].encode())
            for address in made["addresses"]:
                outcome, detail = certificate.try_at(address)
                rows.append(
                    {
                        "cluster": cluster["name"],
                        "address": address,
                        "ca": "new" if each["expected"] == "accepted" else "old",
                        "client_ca_id": each["client_ca_id"],
                        "expected": each["expected"],
                        "outcome": outcome,
                        "detail": detail,
                    }
                )
    sent = ("client_ca_id", "address", "outcome", "detail")
    results = [{name: row[name] for name in sent} for row in rows]
    path = cluster_path(cluster, "client-ca-rotation", "proofs")
    return rows, client.post(path, {"results": results})


def _ca_row(ca: "JsonObject") -> "JsonObject":
    hidden = {"certificate", "key_properties", "access_policy"}
    row = {name: value for name, value in ca.items() if name not in hidden}
    return with_times(row | _object(ca["key_properties"]))


def _ca_text(ca: "JsonObject") -> str:
    return f"{ca['id']}, signer {ca['signer']}, until {ca['not_after']}"


def _time(value: object) -> object:
    return parse_rfc3339(value) if isinstance(value, str) else None


def _object(value: object) -> "JsonObject":
    return cast("JsonObject", value)


def _objects(value: object) -> "Sequence[JsonObject]":
    return cast("Sequence[JsonObject]", value)
