"""Loads the settings and opens the store for commands. Warns about unknown environment variables."""

import contextlib
import os
import pwd
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args, get_origin

import typer

from clustercert.cli.lookup import only_cluster, split_cluster, split_domain
from clustercert.cli.options import CommandError, did_you_mean
from clustercert.cli.terminal.output import print_note
from clustercert.model.errors import NotFound
from clustercert.model.identity import DEFAULT_DOMAIN

if TYPE_CHECKING:
    from pydantic import BaseModel

    from clustercert.custody.status import KekStatus
    from clustercert.identity.directory import Directory
    from clustercert.identity.directory_reader import DirectoryReader
    from clustercert.model import Actor, Cluster, Domain, Project
    from clustercert.settings import Settings
    from clustercert.store.clusters.registry import ClusterQueries
    from clustercert.store.engine.database import Database
    from clustercert.wiring import Components


_PREFIX = "CLUSTERCERT_"
# The settings file of docs/install.md.
_INSTALLED_CONFIG = Path("/etc/clustercert/clustercert.toml")
# Environment variables that the command line reads, but that are not settings. The prefix is omitted.
_OTHERS = frozenset(
    {"CA_FILE", "CA_FINGERPRINT", "CONFIG", "DEBUG", "PASSWORD", "PROFILE", "SECRET_KEY", "TOKEN", "URL"}
)
# The top-level fields of the settings. Client commands can't import the settings, because packages that the settings
# need may be missing.
TOP_LEVEL_SETTINGS = frozenset(
    (
        "DATA_DIR",
        "DATABASE_URL",
        "KEK_FILE",
        "KEK",
        "KEK_TRANSIT",
        "SERVICE_NAME",
        "SERVER",
        "WEBHOOK",
        "API",
        "IDENTITY",
        "ISSUING",
        "SIGNERS",
        "LIMITS",
        "POLICY",
        "REVOCATION",
        "AUDIT",
        "REQUESTS",
        "CONSOLE",
        "METRICS",
        "TRACING",
        "LOG",
    )
)


def warn_of_unknown_variables(environment: Mapping[str, str]) -> None:
    """Write a warning to standard error for each variable `CLUSTERCERT_…` that is not a setting."""
    from clustercert.settings import Settings

    known, tables = set(_OTHERS), set[str]()
    for name, is_table in _variables(Settings, ""):
        (tables if is_table else known).add(name)
    for variable in sorted(environment):
        name = variable.upper().removeprefix(_PREFIX)
        if not variable.upper().startswith(_PREFIX) or name in known or name.partition("__")[0] in tables:
            continue
        # The most frequent mistake is a single underscore between a table and a field, instead of two.
        same = [each for each in known if each.replace("_", "") == name.replace("_", "")]
        similar = did_you_mean(variable, [_PREFIX + each for each in same or known])
        _warn(variable, similar)


def warn_in_client(environment: Mapping[str, str]) -> None:
    """Like `warn_of_unknown_variables`, without loading the settings. Does not check the fields of tables."""
    known = _OTHERS | TOP_LEVEL_SETTINGS
    for variable in sorted(environment):
        name = variable.upper().removeprefix(_PREFIX)
        if variable.upper().startswith(_PREFIX) and name.partition("__")[0] not in known:
            from difflib import get_close_matches  # slow to import

            # Compare the names without the prefix, because the prefix would make all names similar.
            similar = get_close_matches(name, sorted(known), n=1)
            _warn(variable, f" Did you mean {_PREFIX}{similar[0]}?" if similar else "")


def _warn(variable: str, similar: str) -> None:
    print_note(f"Warning: The environment variable {variable} is not a setting and has no effect.{similar}")


def _variables(model: "type[BaseModel]", prefix: str) -> Iterator[tuple[str, bool]]:
    """Yield the name of each variable for a setting, and whether the setting is a table with arbitrary keys."""
    from pydantic import BaseModel

    for field, info in model.model_fields.items():
        name = prefix + field.upper()
        kinds = [info.annotation, *get_args(info.annotation)]
        yield name, any(get_origin(kind) is dict for kind in kinds)
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _variables(kind, f"{name}__")


T = TypeVar("T")

CLUSTER_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class RootOptions:
    """The root command's options."""

    config: Path | None
    data_dir: Path | None


@dataclass(frozen=True, slots=True)
class Finder:
    """Finds objects by name or id. The methods raise NotFound, or Conflict or CommandError if several objects match."""

    directory: "DirectoryReader"
    clusters: "ClusterQueries"

    async def domain_or_any(self, name_or_id: str | None) -> "Domain | None":
        """Find a domain. Returns `None`, which means all domains, if `name_or_id` is `None`."""
        return None if name_or_id is None else await self.directory.find_domain(name_or_id)

    async def project(self, name_or_id: str, domain: str | None = None) -> "Project":
        """Find a project. `name_or_id` can also be DOMAIN/NAME."""
        name, domain = split_domain(name_or_id, domain)
        return await self.directory.find_project(name, await self.domain_or_any(domain))

    async def cluster(
        self, name_or_id: str, project: str | None = None, domain: str | None = None
    ) -> "Cluster":
        """Find a cluster. `domain` is the domain of the cluster's project. Accepts the forms of `split_cluster`."""
        from clustercert.model import Project

        given, (name_or_id, project) = name_or_id, split_cluster(name_or_id, project)
        owner = None
        if project is not None:
            project, domain = split_domain(project, domain)
            try:
                owner = await self.project(project, domain)
            except NotFound as error:
                # The user may have written a domain in place of the project.
                if given != f"{project}/{name_or_id}":
                    raise
                raise NotFound(
                    f"{error.message} Write DOMAIN/PROJECT/CLUSTER, or PROJECT/CLUSTER."
                ) from error
        within = await self.domain_or_any(domain)
        named = await self.clusters.find(
            name_or_id, owner.id if owner else None, within.id if within else None
        )
        projects = {
            each.id: each
            for each in await self.directory.queries.entities_with_ids(
                Project, {each.project_id for each in named}
            )
        }
        by_id = {each.id: each for each in named if each.project_id in projects}
        owners = {key: projects[each.project_id] for key, each in by_id.items()}
        found = only_cluster(
            name_or_id,
            [
                {"id": key, "project": each.name, "project_id": each.id, "domain": each.domain.name}
                for key, each in owners.items()
            ],
        )
        if found is None:
            where = (
                f" in the project {owner.domain.name}/{owner.name}"
                if owner
                else f" in the domain {domain}"
                if domain
                else ""
            )
            raise NotFound(f"There is no cluster {name_or_id}{where}.")
        return by_id[str(found["id"])]


@dataclass(frozen=True, slots=True)
class Reader(Finder):
    """The context of a command that only reads the store."""

    settings: "Settings"
    database: "Database"
    keks: "tuple[KekStatus, ...]"


@dataclass(frozen=True, slots=True)
class Operator(Finder):
    """The context of an operator's command: the components on an open store, and the actor for audit events."""

    directory: "Directory"
    components: "Components"
    actor: "Actor"


async def default_domain(directory: "Directory") -> "Domain | None":
    """Return the only domain, or the domain named `Default`, or `None`."""
    domains = await directory.queries.domains()
    return next((each for each in domains if len(domains) == 1 or each.name == DEFAULT_DOMAIN), None)


def settings_loader(
    context: typer.Context, policy_file: Path | None = None, /, **overrides: object
) -> "Callable[..., Settings]":
    """Return a function that loads the settings as `settings` does. The function can be pickled."""
    from clustercert.settings import load

    warn_of_unknown_variables(os.environ)
    options: RootOptions = context.obj
    if options.data_dir is not None:
        overrides["data_dir"] = options.data_dir
    return partial(load, options.config, policy_file, **overrides)


def settings(context: typer.Context, policy_file: Path | None = None, /, **overrides: object) -> "Settings":
    """Load the settings. Options override the environment, which overrides the settings file. Raises SettingsError.

    Args:
        policy_file: a file that replaces the whole table `[policy]`.
    """
    load = settings_loader(context, policy_file, **overrides)
    loaded = load()
    if not loaded.demo or loaded.kek_file is not None:
        return loaded
    # A demo's key is in its data folder, so commands find the key without settings.
    from clustercert.demo.tenants import KEK_FILE

    return load(kek_file=loaded.data_dir / KEK_FILE)


def require_database(loaded: "Settings", config: Path | None) -> None:
    """Raise CommandError if the database file is missing, because opening a missing database would create it.

    Args:
        config: the settings file that the user named.
    """
    _, _, path = loaded.store_url.partition(":///")
    file = Path(path.partition("?")[0])
    if loaded.shared_database:
        return
    is_missing = _is_missing(file)
    is_named = config is not None or loaded.model_fields_set & {"data_dir", "database_url"}
    if not (is_named or os.access(file, os.R_OK | os.W_OK) or _is_missing(_INSTALLED_CONFIG)):
        what = "There is no database in" if is_missing else "You have no access to a database in"
        raise CommandError(
            f"{what} {loaded.data_dir.absolute()}. {_INSTALLED_CONFIG} exists: name it with --config or "
            "CLUSTERCERT_CONFIG."
        )
    if is_missing:
        where, otherwise = (
            (f"in {loaded.data_dir.absolute()}", "name its folder with --data-dir or --config")
            if loaded.database_url is None
            else (f"at {file}", "change database_url in the settings or CLUSTERCERT_DATABASE_URL")
        )
        raise CommandError(
            f"There is no database {where}. Run this command on the server, {otherwise}, or create a database with "
            "`clustercert db upgrade`."
        )


def _is_missing(path: Path) -> bool:
    """Whether a file does not exist. Opening the file later reports other errors, such as a missing permission."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def store_settings(context: typer.Context, policy_file: Path | None = None) -> "Settings":
    """Load the settings for a command on an existing database. Raises SettingsError or CommandError."""
    loaded = settings(context, policy_file)
    require_database(loaded, context.obj.config)
    return loaded


def operate(context: typer.Context, work: Callable[[Operator], Awaitable[T]]) -> T:
    """Open the store, run `work` as this machine's user, and close the store. Raises ClustercertError."""
    loaded = store_settings(context)
    # Import these modules only after loading the settings, so that invalid settings are reported without delay.
    import asyncio

    from clustercert.observability import log
    from clustercert.wiring import open_components

    log.configure_command()

    async def opened() -> T:
        async with open_components(loaded) as found:
            directory, clusters = found.identity.directory, found.clusters.queries
            return await work(Operator(directory, clusters, found, actor()))

    return asyncio.run(opened())


def examine(context: typer.Context, work: Callable[[Reader], Awaitable[T]]) -> T:
    """Open the store, run `work`, and close the store. Raises ClustercertError, as `operate` does.

    Builds only the parts of the service that `work` needs, so that the command starts in half the time.
    """
    loaded = store_settings(context)
    import asyncio

    from clustercert.custody import Custody
    from clustercert.custody.status import kek_statuses
    from clustercert.identity.directory_reader import DirectoryReader
    from clustercert.model.errors import KeysUnavailable
    from clustercert.observability import log
    from clustercert.store.clusters.registry import ClusterQueries
    from clustercert.store.engine import migrate
    from clustercert.store.keys import KeyQueries

    log.configure_command()

    async def opened() -> T:
        async with migrate.opened(loaded.store_url, loaded.data_dir) as database:
            custody = Custody(database, *loaded.kek_sources())
            try:
                # Show an unreachable key management service as a result, not as an error.
                with contextlib.suppress(KeysUnavailable):
                    await custody.open()
                keks = await kek_statuses(KeyQueries(database), custody.sources)
            finally:
                await custody.close()
            if loaded.signers:
                from clustercert.wiring.signers import Signers

                Signers(loaded.signers, custody)
            directory, clusters = DirectoryReader(database), ClusterQueries(database)
            return await work(Reader(directory, clusters, loaded, database, keks))

    return asyncio.run(opened())


def actor() -> "Actor":
    """Return this command's user as the actor. All events of the command share one request id."""
    from clustercert.model import Actor, Origin

    # Ask the operating system for the account, since environment variables can be forged.
    uid = os.getuid()
    try:
        account = pwd.getpwuid(uid).pw_name
    except KeyError:
        account = str(uid)
    return Actor(f"cli:{account}", Origin.local())
