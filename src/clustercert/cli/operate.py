"""`clustercert db`, `keys`, `serve`, `demo` and `fingerprint`: runs the service and maintains its store."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.commands import on_store
from clustercert.cli.options import CommandError, YesOption, parse_duration, time_ago
from clustercert.cli.session import (
    Operator,
    Reader,
    actor,
    examine,
    operate,
    require_database,
    settings,
    settings_loader,
)
from clustercert.cli.terminal.output import (
    Output,
    OutputOption,
    Progress,
    Row,
    note_text,
    print_note,
    row_of,
    show_list,
    show_one,
)
from clustercert.cli.terminal.prompts import confirm
from clustercert.model.choices import ServerRole
from clustercert.model.errors import Conflict, StoreFault, Unavailable
from clustercert.model.identity import DEFAULT_DOMAIN
from clustercert.model.times import rfc3339

if TYPE_CHECKING:
    from clustercert.cli.session import RootOptions
    from clustercert.custody.status import KekStatus
    from clustercert.server.tls_files import Tls
    from clustercert.settings import Settings
    from clustercert.store.engine.database import Database

# The number of certificates that one query reads.
_PAGE_SIZE = 1000

WaitOption = Annotated[
    timedelta | None,
    typer.Option(
        "--wait",
        parser=parse_duration,
        metavar="DURATION",
        help="If the database server does not answer, wait for it for up to this time, such as 10m. Without this"
        " option, or after this time, the command fails with exit code 6.",
    ),
]

db = typer.Typer(name="db", help="Manage the database and its schema.", no_args_is_help=True)


@db.command()
def upgrade(
    context: typer.Context,
    schema_only: Annotated[
        bool,
        typer.Option(
            "--schema-only",
            help="Create or upgrade only the schema. Needs no key-encryption key. Use this option on a "
            "machine that serves only the webhook and has no key.",
        ),
    ] = False,
    wait: WaitOption = None,
) -> None:
    """Create the database, or upgrade its schema.

    For a new database this also creates the data folder, the first data key, the roles and the domain Default.

    Examples:
        clustercert db upgrade
    """
    import asyncio

    from clustercert.wiring import initialise, upgrade_schema

    loaded = settings(context)
    asyncio.run(_wait_for_database(loaded, wait))
    with Progress("migrations", at_once=True) as progress:
        if schema_only:
            asyncio.run(upgrade_schema(loaded, report_progress=progress.reach))
        else:
            asyncio.run(initialise(loaded, actor=actor(), report_progress=progress.reach))
    if not schema_only and operate(context, _ensure_domain):
        print_note(f"Created the domain {DEFAULT_DOMAIN}.")
    print_note("The database schema is up to date.")


@db.command()
def copy(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="The SQLite database, such as clustercert.db."),
    ],
) -> None:
    """Copy an SQLite database to the empty PostgreSQL database in the settings.

    Stop the service first: it would write to the SQLite database, and these changes would be lost. Copies everything in
    one transaction, with the ids, the audit log and the encrypted keys. If the command is interrupted, the target stays
    empty. The key-encryption keys stay where they are.

    Examples:
        clustercert db copy /var/lib/clustercert/clustercert.db
    """
    import asyncio

    from clustercert.store.engine.database import Database
    from clustercert.store.engine.database_copy import copy_database

    loaded = settings(context)
    if not loaded.shared_database:
        raise CommandError(
            "The settings name no PostgreSQL database. Set database_url, or CLUSTERCERT_DATABASE_URL, to the new"
            " database."
        )

    # Opening a missing database would create it.
    if not file.is_file():
        raise CommandError(f"{file} is not a file. Give the path of the SQLite database.")

    async def work(progress: Progress) -> int:
        source = Database(f"sqlite+aiosqlite:///{file.resolve()}", data_dir=file.resolve().parent)
        target = Database(loaded.store_url)
        try:
            return await copy_database(source, target, progress.reach)
        finally:
            await source.close()
            await target.close()

    with Progress("rows copied") as progress:
        count = asyncio.run(work(progress))
    print_note(
        f"Copied {count} rows. Run `clustercert db check` and `clustercert audit verify`, and start the service with"
        " the new database."
    )


@db.command()
def check(
    context: typer.Context,
    certificates: Annotated[
        bool,
        typer.Option(
            "--certificates",
            help="Also compare each stored certificate with its row, its CA and the policy's limits. A running"
            " service does the same in the background.",
        ),
    ] = False,
) -> None:
    """Check the schema, the keys and the names of issuers. Exits with status 1 if a check fails. Also warns of risks.

    Shows the revision of the schema. Names each key-encryption key that the database needs, and whether the key can be
    used now.

    Examples:
        clustercert db check
        clustercert db check --certificates
    """
    from clustercert.store.engine import migrate

    async def work(reader: Reader) -> str | None:
        # Opening the store has already checked the schema, and whether the keys belong to the database.
        await reader.directory.require_free(reader.settings.identity.authority_names)
        await _print_warnings(reader.settings, reader.database)
        _print_keks(reader.keks)
        if unusable := [kek.id or kek.source for kek in reader.keks if kek.source and kek.problem]:
            raise CommandError(
                f"These key-encryption keys can't be used: {', '.join(map(str, unusable))}. Without all of the keys"
                " of a data key, the service can't start."
            )
        if certificates:
            await _check_certificates(reader)
        return await migrate.current(reader.database)

    print_note(f"The database schema ({examine(context, work)}) and the keys are valid.")


async def _check_certificates(reader: Reader) -> None:
    """Check all stored certificates. Prints the certificates that fail the check, and then raises CommandError."""
    from clustercert.audit.retention import CertificateScrubber
    from clustercert.model import utc_now

    checker = CertificateScrubber(reader.database, reader.settings.policy.policy(), utc_now)
    count, position, rows = 0, 0, list[Row]()
    with Progress("certificates checked") as progress:
        while True:
            checked = await checker.check_after(position, _PAGE_SIZE)
            position = checked.last_id
            count += checked.count
            progress.advance(checked.count)
            for mismatch in checked.mismatches:
                record = mismatch.certificate.record
                names = row_of(record, "serial", "cluster_id", "user_id")
                rows.append(
                    {"fingerprint": record.fingerprint.hex(), **names, "problems": list(mismatch.problems)}
                )
            if checked.count < _PAGE_SIZE:
                break
    if not rows:
        print_note(f"{count} certificates were checked.")
        return
    columns = ("fingerprint", "problems", "serial", "cluster_id", "user_id")
    show_list(rows, Output.TABLE, columns=columns, name="fingerprint", keep=columns[:2])
    raise CommandError(
        f"{count} certificates were checked, and {len(rows)} differ from their row, their CA or the policy's limits."
    )


@db.command()
@on_store
async def prune(
    operator: Operator,
    older_than: Annotated[
        datetime,
        typer.Option(
            parser=time_ago, metavar="DURATION", help="Minimum time since the end, such as 90d or 2w."
        ),
    ],
    output: OutputOption = Output.TABLE,
    yes: YesOption = False,
) -> None:
    """Delete certificates and access requests that ended long ago. Their audit events stay.

    Access requests are kept for at least a day after their end, and after the last decision. Also deletes revocations
    of users and clusters that no certificate needs any more. The service can keep running. If the command is
    interrupted, run the command again.

    Examples:
        clustercert db prune --older-than 90d
    """
    from clustercert.model import utc_now
    from clustercert.model.access_requests import EARLY_USE_PERIOD
    from clustercert.model.events.administration import CertificatesPruned
    from clustercert.model.events.requests import AccessRequestsPruned

    ended = rfc3339(older_than)
    certificates, requests = operator.components.certificates, operator.components.requests.queries
    # Younger requests limit how often their users may use access before an approval.
    closed_before = min(older_than, utc_now() - EARLY_USE_PERIOD)
    expired, closed = await certificates.count_expired(older_than), await requests.count_closed(closed_before)
    confirm(
        f"Delete the {expired} certificates and {closed} access requests that ended before {ended}?", yes=yes
    )

    def event(count: int) -> CertificatesPruned:
        """Create the audit event for `count` certificates that were deleted together."""
        return CertificatesPruned(
            at=utc_now(), actor=operator.actor, subject=ended, count=count, ended_before=ended
        )

    def requests_event(count: int) -> AccessRequestsPruned:
        before = rfc3339(closed_before)
        return AccessRequestsPruned(
            at=utc_now(), actor=operator.actor, subject=before, count=count, closed_before=before
        )

    pruned = pruned_requests = 0
    while count := await certificates.prune(older_than, event):
        pruned += count
    while count := await requests.prune(closed_before, requests_event):
        pruned_requests += count
    revocations = await operator.components.revocation_pruning.prune(
        actor=operator.actor, made_before=older_than
    )
    row = {
        "pruned": pruned,
        "access_requests": pruned_requests,
        "revocations": revocations,
        "ended_before": older_than,
    }
    show_one(row, output, name="pruned")


async def _ensure_domain(operator: Operator) -> bool:
    directory = operator.directory
    if await directory.queries.domains():
        return False
    try:
        await directory.create_domain(DEFAULT_DOMAIN, actor=operator.actor)
    except Conflict:
        # Another process, which upgraded the database at the same time, has created the domain.
        return False
    return True


keys = typer.Typer(name="keys", help="Manage the keys that encrypt secrets at rest.", no_args_is_help=True)


@keys.command()
def generate(
    context: typer.Context,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="File to create, with mode 0600. Keep the file and a copy outside the data folder.",
        ),
    ],
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a file with a new key-encryption key.

    Examples:
        clustercert keys generate --out /etc/clustercert/private/kek
    """
    from clustercert.custody.keks import write_new_kek_file
    from clustercert.settings import SettingsError

    kek, path = write_new_kek_file(out), out.absolute()
    named = None
    # A key can be created before there are valid settings.
    with contextlib.suppress(SettingsError):
        named = settings(context).kek_file
    next_step = (
        "The settings name this file in kek_file."
        if named is not None and named.absolute() == path
        else f'Set kek_file = "{path}" in the settings, or CLUSTERCERT_KEK_FILE.'
    )
    print_note(f"{next_step} Without this file, the secrets can't be decrypted.")
    show_one({"id": kek.id, "file": str(out)}, output, name="id")


@keys.command("list")
@on_store
async def list_keys(operator: Operator, output: OutputOption = Output.TABLE) -> None:
    """List key-encryption keys and data keys. Does not show the keys themselves.

    Uses each key-encryption key to decrypt the data keys that it wraps, and shows why a key can't be used.

    Examples:
        clustercert keys list
    """
    from clustercert.custody.status import kek_statuses

    rotation = operator.components.custody.rotation
    keks = await kek_statuses(rotation.queries, rotation.sources)
    columns = ("kind", "id", "active", "wrapped_by", "source", "problem", "created_at")
    cells: list[tuple[object, ...]] = [
        ("key-encryption", kek.id, kek.wraps_new, None, kek.source, kek.problem or None, None) for kek in keks
    ]
    cells += [
        ("data", str(key.id), key.active, key.kek_ids, None, None, key.created_at)
        for key in await rotation.queries.data_keys()
    ]
    rows = [dict(zip(columns, row, strict=True)) for row in cells]
    show_list(rows, output, columns=columns, name="id", keep=("active", "problem"))


@keys.command()
@on_store
async def rotate(
    operator: Operator,
    data_key: Annotated[
        bool, typer.Option("--data-key", help="Create a new data key and encrypt all secrets with it.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Wrap the data keys with a new key-encryption key, or with all keys that the settings name.

    If a source of keys in the settings does not wrap all data keys yet, wraps them with the first key of each source.
    The service can keep running. If the command is interrupted, run the command again: all secrets stay readable.

    Examples:
        clustercert keys rotate
        clustercert keys rotate --data-key
    """
    rotation = operator.components.custody.rotation
    if data_key:
        done = await rotation.rotate_data_key(actor=operator.actor)
        row = {"id": str(done.data_key_id), "resealed": done.resealed, "damaged": done.damaged}
        show_one(row, output, name="id")
        if done.damaged:
            print_note("No key decrypts the damaged secrets. They were left unchanged: replace them.")
        return
    rewrapped = await rotation.rotate_kek(actor=operator.actor)
    row = {"ids": rewrapped.kek_ids, "added": rewrapped.added, "rewrapped": rewrapped.rewrapped}
    show_one(row, output, name="ids")
    print_note("Older key-encryption keys are kept until you run `clustercert keys retire`.")


@keys.command()
@on_store
async def retire(
    operator: Operator,
    kek_ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY…",
            help="Ids of keys to delete, together with the copies of data keys that they wrapped. By "
            "default, the keys that wrap no data key.",
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
    yes: YesOption = False,
) -> None:
    """Delete key-encryption keys that are not needed any more.

    Deletes each key from its file, and the copies of data keys that this key wrapped from the database. Keys in OpenBao
    or Vault stay there. Refuses to delete a key without which the data keys could not be decrypted.

    Examples:
        clustercert keys retire
    """
    rotation = operator.components.custody.rotation
    ids: tuple[str, ...] = ()
    if named := tuple(kek_ids or ()) or await rotation.unused():
        question = (
            "Backups from before the last rotation need the old keys. "
            f"Delete the key-encryption keys {', '.join(named)}?"
        )
        confirm(question, yes=yes)
        ids = await rotation.retire(kek_ids or (), actor=operator.actor)
    show_list([{"id": kek_id} for kek_id in ids], output, columns=("id",), name="id")


def _print_keks(keks: "tuple[KekStatus, ...]") -> None:
    """Print each key-encryption key, what it wraps, and whether it can be used. Warns of data keys that lack a key."""
    wrapped = {data_key_id for kek in keks for data_key_id in kek.data_key_ids}
    for kek in keks:
        if kek.wraps_new and kek.id and (missing := sorted(wrapped.difference(kek.data_key_ids))):
            print_note(
                f"Warning: The key-encryption key {kek.id} does not wrap the data keys"
                f" {', '.join(map(str, missing))}. Run `clustercert keys rotate`."
            )
    for kek in keks:
        wraps = f"data keys {', '.join(map(str, kek.data_key_ids))}" if kek.data_key_ids else "no data key"
        print_note(
            f"Key-encryption key {kek.id or '(unknown)'}{f', {kek.source}' if kek.source else ''}: wraps {wraps}; "
            f"{kek.problem or 'can be used'}."
        )


def demo(
    context: typer.Context,
    port: Annotated[
        int, typer.Option(metavar="PORT", min=0, max=65535, help="Port on loopback, 0 for any free port.")
    ] = 8080,
    data_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Data folder. [default: clustercert-data]")
    ] = None,
    workers: Annotated[
        int, typer.Option(metavar="N", min=1, max=256, help="Number of worker processes.")
    ] = 1,
    with_eip: Annotated[
        bool, typer.Option("--with-eip", help="Add an external address to the cluster.")
    ] = False,
    tenants: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, max=1000, help="Create this many more projects, users and clusters."
        ),
    ] = 0,
    tls: Annotated[
        bool, typer.Option("--tls", help="Serve https with a new certificate, as API servers require.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print one JSON object when the service is ready, and everything else to standard error.",
        ),
    ] = False,
) -> None:
    """Start a demo service on loopback, and get a kubeconfig.

    The demo creates everything that it needs in the data folder, and reuses this folder in later runs.

    Examples:
        clustercert demo
        clustercert demo --tls --port 8443
    """
    from clustercert.demo import run

    root: RootOptions = context.obj
    folder = data_dir or root.data_dir or Path("clustercert-data")
    run(folder, port, workers=workers, with_eip=with_eip, tenants=tenants, tls=tls, as_json=as_json)


def fingerprint(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Print the fingerprint that users compare with the service's certificate at their first login.

    Reads the file that the settings name, as `serve` does. Uses the last certificate in the file, which is the CA's
    certificate if the file contains the CA. `-o name` prints only the fingerprint.

    Examples:
        clustercert fingerprint
    """
    from clustercert.server.tls_files import present_tls

    files = present_tls(settings(context))
    if files is None:
        raise CommandError(
            "The service has no certificate: it uses plain HTTP, or has not created its own certificate yet. Set "
            "server.tls_certificate, start the service once, or ask the operator of the proxy that terminates TLS."
        )
    row = {
        "fingerprint": files.fingerprint,
        "certificate_fingerprint": files.certificate_fingerprint,
        "not_after": files.not_after,
        "file": str(files.certificate),
    }
    show_one(row, output, name="fingerprint")


# Seconds between two attempts to reach the database.
_WAIT_INTERVAL = 1.0
# Where a socket that listens on all addresses accepts connections.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - addresses in the settings


def serve(
    context: typer.Context,
    role: Annotated[
        ServerRole,
        typer.Option(
            help="Which requests this process serves: all requests, only requests from clients, or only "
            "requests from API servers. With `webhook`, the process listens at the address in the settings [webhook]."
        ),
    ] = "all",
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Address to listen on. Overrides the settings.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            min=0,
            max=65535,
            help="Port to listen on, 0 for any free port. Overrides the settings.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=256, help="Number of worker processes. Overrides the settings."),
    ] = None,
    drain: Annotated[
        bool,
        typer.Option(
            "--drain",
            help="After SIGTERM, answer each open connection once more, for up to 10 seconds, so that clients connect "
            "to another replica.",
        ),
    ] = False,
    wait: WaitOption = None,
) -> None:
    """Run the service until it is interrupted. Finishes requests in progress.

    Examples:
        clustercert serve --workers 4
        clustercert serve --role webhook
    """
    from clustercert.server import serving, tls_files
    from clustercert.server.announcement import Announcement
    from clustercert.server.file_watch import FileWatch
    from clustercert.settings import SettingsError

    serving.end_on_interrupt()
    # Ignore SIGHUP until the service can reload its settings. By default, the signal terminates the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    given = {"host": host, "port": port, "workers": workers}
    table = "webhook" if role == "webhook" else "server"
    overrides = {table: {name: value for name, value in given.items() if value is not None}}
    # Use no local function here, because `load` is pickled for the workers.
    load = partial(_load_for_role, settings_loader(context, **overrides), role)
    watch = FileWatch(context.obj.config)
    loaded = load()
    if loaded.demo:
        raise SettingsError(
            f"The folder {loaded.data_dir} belongs to a demo. `serve` refuses it, because the encryption key is in"
            " the same folder as the data. Choose a different folder with --data-dir."
        )
    loaded.check_examples()
    require_database(loaded, context.obj.config)
    # The first process of a container gets only signals that it handles. Nothing needs to be cleaned up yet.
    before = signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    serving.run_interruptible(_wait_for_database(loaded, wait))
    signal.signal(signal.SIGTERM, before)
    serving.run_interruptible(_check(loaded, role))
    listener = serving.listener(loaded.server.host, loaded.server.port)
    address, actual_port = listener.address
    files = tls_files.tls(loaded, address, role)
    reachable = _LOOPBACK.get(address, address)
    announcement = Announcement(reachable, actual_port, _address_text(address, actual_port, files))
    serving.run(
        loaded, listener, files, role, load=load, watch=watch, drain=drain, on_start=announcement.start
    )


def _load_for_role(load: Callable[[], "Settings"], role: ServerRole) -> "Settings":
    return load().for_role(role)


async def _wait_for_database(loaded: "Settings", wait: timedelta | None) -> None:
    """Return when the database server answers. Raises Unavailable if it does not answer in this time."""
    if wait is None or not loaded.shared_database:
        return
    import asyncio

    from clustercert.policy.lifetime import lifetime_text
    from clustercert.store.engine import migrate
    from clustercert.store.engine.database import Database

    deadline = time.monotonic() + wait.total_seconds()
    has_told = False
    database = Database(loaded.store_url, data_dir=loaded.data_dir)
    try:
        while True:
            try:
                await migrate.current(database)
            except Unavailable as failure:
                if isinstance(failure, StoreFault) or time.monotonic() > deadline:
                    raise
            else:
                return
            if not has_told:
                print_note(f"Waiting for the database, for up to {lifetime_text(wait)}.")
            has_told = True
            await asyncio.sleep(_WAIT_INTERVAL)
    finally:
        await database.close()


async def _check(loaded: "Settings", role: ServerRole) -> None:
    """Open the store once, so that the command reports errors that the workers would only log. Prints warnings."""
    from clustercert.observability import log
    from clustercert.wiring import open_components

    log.configure_command()
    async with open_components(loaded, with_keys=role != "webhook") as opened:
        if role != "webhook":
            await opened.identity.directory.require_free(loaded.identity.authority_names)
        await _print_warnings(loaded, opened.database, role)


async def _print_warnings(settings: "Settings", database: "Database", role: ServerRole | None = None) -> None:
    from clustercert.server.deployment_warnings import deployment_warnings

    async for warning in deployment_warnings(settings, database, role):
        print_note(f"Warning: {warning}")


def _address_text(host: str, port: int, files: "Tls | None") -> str:
    """Return lines with the service's address, and with the fingerprint of its certificate."""
    address = f"[{host}]" if ":" in host else host
    lines = [f"Listening on {'https' if files else 'http'}://{address}:{port}"]
    if files is not None:
        lines.append(f"SHA-256 fingerprint that users compare at their first login: {files.fingerprint}")
        if files.has_issuer:
            lines.append(
                "The leaf certificate has another fingerprint, which changes at each renewal:"
                f" {files.certificate_fingerprint}"
            )
        if files.ca is not None:
            lines.append(
                f"The service created its certificate for {', '.join(files.names)}. Give its CA to clients: {files.ca}"
            )
    return "".join(f"{note_text(line)}\n" for line in lines)
