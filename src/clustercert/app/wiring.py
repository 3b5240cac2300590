"""Settings -> store, custody, signers, use cases: what the web and the command line both work with."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import cast

from clustercert.clusters import Clusters
from clustercert.custody import Custody
from clustercert.custody.keks import KekFile, KekSource, KekVariable
from clustercert.identity import Identity
from clustercert.identity.roles import Roles
from clustercert.issuance import Issuance
from clustercert.keygen import KeyGenerator
from clustercert.model import Origin, utc_now
from clustercert.settings import Settings, SettingsError
from clustercert.signers import Signer, SignerFactory
from clustercert.store import migrate
from clustercert.store.certificates import CertificateRows
from clustercert.store.clusters import ClusterRows
from clustercert.store.database import Database
from clustercert.store.ledger import Ledger


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
                signers=_signers(custody),
                ledger=Ledger(database),
                now=utc_now,
            ),
            certificates=CertificateRows(database),
        )


async def initialise(settings: Settings, *, actor: str, origin: Origin) -> None:
    """Make the data folder, the schema, the first data key and the built-in roles; what is there already stays.

    Raises SchemaError, CustodyError, SettingsError or Unavailable.
    """
    keks = kek_source(settings)
    keks.read()
    _make_folder(settings)
    database = Database(settings.store_url)
    try:
        await migrate.upgrade(database)
        await Custody(database, keks, utc_now).initialise(actor=actor, origin=origin)
        await Roles(database, utc_now).bootstrap()
    finally:
        await database.close()


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
