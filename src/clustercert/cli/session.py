"""What a command gets its hands on: the settings, and the opened store with a name to act in."""

import os
import pwd
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from clustercert.errors import ClustercertError

if TYPE_CHECKING:
    # Only the commands that work on the store load what opens it.
    from clustercert.app.wiring import Components
    from clustercert.model import Domain, Who
    from clustercert.settings import Settings

T = TypeVar("T")

DEFAULT_DOMAIN = "Default"


class UnclearError(ClustercertError):
    """The command could mean more than one thing; the message says how to be clearer."""


@dataclass(frozen=True, slots=True)
class Where:
    """The root command's options."""

    config: Path | None
    data_dir: Path | None


@dataclass(frozen=True, slots=True)
class Operator:
    """The opened store, and who acts on it."""

    parts: "Components"
    who: "Who"

    async def domain(self, wanted: str | None) -> "Domain":
        """The domain of that id or name; unnamed, the only one or `Default`. Raises NotFound or UnclearError."""
        directory = self.parts.identity.directory
        if wanted is not None:
            return await directory.find_domain(wanted)
        domains = await directory.domains()
        likely = (
            domains if len(domains) == 1 else [domain for domain in domains if domain.name == DEFAULT_DOMAIN]
        )
        if not likely:
            names = ", ".join(domain.name for domain in domains[:10])
            raise UnclearError(
                f"Say which domain with --domain: {names}."
                if domains
                else "There is no domain yet. Make one with `clustercert domain create NAME`."
            )
        return likely[0]

    async def domain_or_any(self, wanted: str | None) -> "Domain | None":
        """The domain of that id or name, or None for all of them. Raises NotFound."""
        return None if wanted is None else await self.parts.identity.directory.find_domain(wanted)


def settings(context: typer.Context, **overrides: object) -> "Settings":
    """The settings; options win over the environment, which wins over the file. Raises SettingsError."""
    from clustercert.settings import load

    where: Where = context.obj
    if where.data_dir is not None:
        overrides["data_dir"] = where.data_dir
    loaded = load(where.config, **overrides)
    if not loaded.demo or loaded.kek_file is not None:
        return loaded
    # A demo's key lies in its folder, so that whoever looks into a demo needs no settings either.
    from clustercert.demo import KEK_FILE

    return load(where.config, **overrides, kek_file=loaded.data_dir / KEK_FILE)


def require_database(loaded: "Settings") -> None:
    """Raise UnclearError where the database would be a file that isn't there: opening it would make an empty one."""
    _, _, path = loaded.store_url.partition(":///")
    if not loaded.shared_database and not Path(path.partition("?")[0]).exists():
        raise UnclearError(
            f"There is no database in {loaded.data_dir.absolute()}. Make one with `clustercert db upgrade`, or "
            "say where it is with --data-dir or --config."
        )


def operate(context: typer.Context, work: Callable[[Operator], Awaitable[T]]) -> T:
    """Open the store, do the work in it as this machine's user, close it. Raises ClustercertError."""
    loaded = settings(context)
    require_database(loaded)
    # After that: most of what can go wrong has gone wrong by now, and quickly.
    import asyncio

    from clustercert import log
    from clustercert.app.wiring import components

    log.configure_command()

    async def opened() -> T:
        async with components(loaded) as parts:
            return await work(Operator(parts, who()))

    return asyncio.run(opened())


def who() -> "Who":
    """Who runs this command, for the audit. All events of the command have one request id."""
    from clustercert.model import Origin

    return {"actor": _actor(), "origin": Origin.local()}


def _actor() -> str:
    """The account of the operating system, which the environment can't pretend."""
    uid = os.getuid()
    try:
        return f"cli:{pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"cli:{uid}"
