"""Settings -> store, custody, signers, use cases: what the web and the command line both work with."""

import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import cast

from clustercert.audit.log import AuditLog
from clustercert.audit.sealer import LogSealer
from clustercert.clusters import Clusters
from clustercert.custody import Custody
from clustercert.custody.keks import KekFile, KekSource, KekVariable
from clustercert.enforcement.access import Access
from clustercert.enforcement.bindings import Bindings
from clustercert.enforcement.reconcile import LEASE_SECONDS, Reconciler
from clustercert.enforcement.sync import Sync
from clustercert.identity import Identity
from clustercert.identity.roles import Roles
from clustercert.inventory import AccessReports, Crls, Inventory
from clustercert.issuance import Issuance
from clustercert.keygen import KeyGenerator
from clustercert.model import Origin, utc_now
from clustercert.revocation import Revoking
from clustercert.settings import Settings, SettingsError
from clustercert.signers import Signer, SignerFactory
from clustercert.store import migrate
from clustercert.store.access import AccessRows
from clustercert.store.audit import AuditRows
from clustercert.store.certificates import CertificateRows
from clustercert.store.clusters import ClusterRows
from clustercert.store.crls import CrlRows
from clustercert.store.database import Database
from clustercert.store.enforcement import EnforcementRows
from clustercert.store.event_pages import EventPages
from clustercert.store.inventory import InventoryRows
from clustercert.store.leader import Leader
from clustercert.store.ledger import Ledger
from clustercert.store.revocations import Revocations
from clustercert.webhook import Webhook


@dataclass(frozen=True, slots=True)
class Components:
    """Everything, put together. The web part is made from it, and the CLI works with it directly."""

    settings: Settings
    database: Database
    custody: Custody
    identity: Identity
    clusters: Clusters
    issuance: Issuance
    certificates: CertificateRows
    revoking: Revoking
    inventory: Inventory
    crls: Crls
    webhook: Webhook
    access: Access
    enforcement: EnforcementRows
    audit_log: AuditLog
    log_sealer: LogSealer


@contextlib.asynccontextmanager
async def components(settings: Settings) -> AsyncIterator[Components]:
    """Open the store and put everything together. Raises SchemaError, CustodyError, Unavailable."""
    async with contextlib.AsyncExitStack() as stack:
        database = Database(settings.store_url)
        stack.push_async_callback(database.close)
        await migrate.check(database)
        custody = Custody(database, kek_source(settings), utc_now)
        await custody.open()
        keys = KeyGenerator(settings.issuing.key_type)
        stack.push_async_callback(keys.close)
        identity = Identity(
            database,
            custody,
            region=settings.identity.region,
            token_lifetime=settings.identity.token_lifetime,
            now=utc_now,
        )
        stack.callback(identity.close)
        clusters = ClusterRows(database)
        signers, ledger = _signers(custody), Ledger(database)
        enforcement = EnforcementRows(database)
        access = Access(signers, ledger, enforcement, utc_now)
        stack.push_async_callback(access.close)
        yield Components(
            settings=settings,
            database=database,
            custody=custody,
            identity=identity,
            clusters=Clusters(clusters, custody, now=utc_now, ca_key_type=settings.issuing.ca_key_type),
            issuance=Issuance(
                clusters=clusters,
                policy=settings.policy.policy(),
                keys=keys,
                signers=signers,
                ledger=ledger,
                bindings=Bindings(access),
                now=utc_now,
            ),
            certificates=CertificateRows(database),
            webhook=Webhook(database, utc_now, frozenset(settings.policy.policy().groups)),
            inventory=Inventory(
                rows=InventoryRows(database),
                clusters=clusters,
                access=AccessReports(AccessRows(database), utc_now),
                now=utc_now,
            ),
            crls=Crls(CrlRows(database), custody, utc_now),
            revoking=Revoking(
                rows=Revocations(database),
                clusters=clusters,
                service_name=settings.service_name,
                undo_window=settings.revocation.undo_window,
                now=utc_now,
            ),
            access=access,
            enforcement=enforcement,
            audit_log=AuditLog(AuditRows(database), EventPages(database)),
            log_sealer=_log_sealer(settings, database, custody),
        )


def reconciler(parts: Components) -> Reconciler:
    """What keeps API servers up to date, in one process of all that serve."""
    rows = parts.enforcement
    generation = parts.database.generation
    return Reconciler(
        feed=rows,
        clusters=parts.clusters.rows,
        leader=Leader(parts.database, "enforce", LEASE_SECONDS),
        sync=Sync(rows, parts.access, utc_now).cluster,
        generation=lambda: generation.value,
        now=utc_now,
    )


async def initialise(settings: Settings, *, actor: str, origin: Origin) -> None:
    """Make the data folder, the schema, the first data key, the audit log and the built-in roles.

    What is there already stays.

    Raises SchemaError, CustodyError, SettingsError or Unavailable.
    """
    keks = kek_source(settings)
    keks.read()
    _make_folder(settings)
    database = Database(settings.store_url)
    try:
        await migrate.upgrade(database)
        custody = Custody(database, keks, utc_now)
        await custody.initialise(actor=actor, origin=origin)
        await _log_sealer(settings, database, custody).begin(actor=actor, origin=origin)
        await Roles(database, utc_now).bootstrap()
    finally:
        await database.close()


def _log_sealer(settings: Settings, database: Database, custody: Custody) -> LogSealer:
    # For a log that is begun now: whatever else is called like this service, its log is not.
    name = f"{settings.service_name}/{secrets.token_hex(8)}"
    return LogSealer(AuditRows(database), custody, utc_now, name)


def kek_source(settings: Settings) -> KekSource:
    """Where the key-encryption keys are. Raises SettingsError where the settings don't say, or say the data folder."""
    if settings.kek is not None:
        return KekVariable("CLUSTERCERT_KEK", settings.kek.get_secret_value().replace(",", "\n"))
    if settings.kek_file is None:
        raise SettingsError(
            "There is no key-encryption key: make one with `clustercert keys generate --out FILE` outside the data"
            " folder and set kek_file, or set CLUSTERCERT_KEK."
        )
    if settings.kek_file.resolve().is_relative_to(settings.data_dir.resolve()) and not settings.demo:
        raise SettingsError(
            f"The key-encryption key {settings.kek_file} lies in the data folder, so that whoever copies one has the"
            " other. Move it elsewhere and set kek_file."
        )
    return KekFile(settings.kek_file)


def _make_folder(settings: Settings) -> None:
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"The data folder {settings.data_dir} can't be made: {error.strerror}. Set data_dir to another."
        ) from error


def _signers(custody: Custody) -> dict[str, Signer]:
    """Every installed signer by its entry point's name; ours use the same door as anybody's."""
    return {
        point.name: cast("SignerFactory", point.load())(custody)
        for point in entry_points(group="clustercert.signers")
    }
