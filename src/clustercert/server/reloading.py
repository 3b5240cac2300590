"""Reloads the settings and the policy of a running process."""

import asyncio
import contextlib
import math
import os
import pickle
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from pydantic import BaseModel, ValidationError

from clustercert.authn.identity_settings import IdentitySettings
from clustercert.authn.oidc.issuers import OidcIssuer
from clustercert.model.errors import ClustercertError, Conflict
from clustercert.observability import metrics
from clustercert.policy.decision import policy_digest
from clustercert.policy.rule_settings import PolicySettings
from clustercert.server.file_watch import POLL_SECONDS, FileWatch
from clustercert.server.tls_context import TlsContext
from clustercert.settings import Settings, SettingsError, settings_digest

FIRST_SECONDS, MOST_SECONDS = 1.0, 60.0


class Retry:
    """The time of the next attempt, with a delay that doubles from 1 to 60 seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._delay = FIRST_SECONDS
        self._due = math.inf

    def is_due(self) -> bool:
        return self._clock() >= self._due

    def clear(self) -> None:
        """Cancel the planned attempt."""
        self._delay, self._due = FIRST_SECONDS, math.inf

    def back_off(self) -> None:
        """Plan the next attempt, after a longer delay than the last time."""
        self._due = self._clock() + self._delay
        self._delay = min(2 * self._delay, MOST_SECONDS)

    def plan(self, seconds: float) -> None:
        """Plan the next attempt for `seconds` from now."""
        self._due = self._clock() + seconds


@dataclass(frozen=True, slots=True)
class Reloadable:
    """The part of the settings that a reload changes."""

    policy: PolicySettings
    issuers: tuple[OidcIssuer, ...]

    @classmethod
    def from_settings(cls, settings: Settings) -> "Reloadable":
        return cls(settings.policy, settings.identity.issuers)

    def in_settings(self, settings: Settings) -> Settings:
        """Return the settings with this part replaced. The new part must fit the other settings."""
        identity = settings.identity.model_copy(update={"issuers": self.issuers})
        return settings.model_copy(update={"policy": self.policy, "identity": identity})


@dataclass(frozen=True, slots=True)
class AppliedSettings:
    """The settings that workers apply, in a file in a private folder that the supervisor creates for its workers."""

    file: Path

    def write(self, applied: Reloadable) -> None:
        """Replace the stored settings. Raises OSError."""
        new = self.file.with_name(f"{self.file.name}.{os.getpid()}")
        new.write_bytes(pickle.dumps(applied))
        new.replace(self.file)

    def read(self) -> Reloadable | None:
        """Return the stored settings, or None if no worker has applied changed settings since the service started."""
        with contextlib.suppress(FileNotFoundError):
            applied = pickle.loads(self.file.read_bytes())  # noqa: S301 - only this service can write into the folder
            if isinstance(applied, Reloadable):
                return applied
        return None


logger = structlog.get_logger()

# Settings that can't be used are read again after this time, because the file may have been incomplete.
FAULT_SECONDS = 300
# The maximum number of names in each list of a log line.
MAX_NAMED = 20
# If one of these settings differs after SIGHUP, the file is probably empty or half-written, or belongs to another
# service.
FIXED = ("data_dir", "database_url", "kek_file", "service_name")


@dataclass(slots=True)
class Reloader:
    """Reloads the policy and issuers of one worker when their files change. On SIGHUP, reloads the TLS files too.

    A policy that can't be used is read again after a few minutes. If a policy can't be recorded because the database
    does not answer, the reload is tried again after a back-off.

    Attributes:
        load: reads the settings again, from the same sources. Raises SettingsError.
        tls: `None` if the service speaks plain HTTP.
        applied: stores the settings for workers that start later; `None` if there is only this process.
        requested: set by SIGHUP.
    """

    load: Callable[[], Settings]
    tls: TlsContext | None
    files: FileWatch = field(default_factory=lambda: FileWatch(None))
    applied: AppliedSettings | None = None
    requested: asyncio.Event = field(default_factory=asyncio.Event)
    _retry: Retry = field(default_factory=Retry)

    async def watch(
        self,
        current: Settings,
        apply: Callable[[Settings], Awaitable[None]],
        stop: asyncio.Event,
    ) -> None:
        """Reload when it is necessary, until `stop` is set.

        Args:
            current: the settings that apply now.
            apply: switches to settings with a different policy or different issuers.
            stop: ends the watch when it is set.
        """
        stopping = asyncio.ensure_future(stop.wait())
        while not stop.is_set():
            requested = asyncio.ensure_future(self.requested.wait())
            await asyncio.wait(
                {stopping, requested}, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            requested.cancel()
            signalled = self.requested.is_set()
            if not stop.is_set() and (signalled or self._is_due()):
                self.requested.clear()
                current = await self._reload(current, apply, signalled=signalled)

    def _is_due(self) -> bool:
        """Whether a file has changed or an attempt is planned for now, and no file is being written."""
        return self.files.has_settled() and (self.files.has_changed() or self._retry.is_due())

    async def _reload(
        self, current: Settings, apply: Callable[[Settings], Awaitable[None]], *, signalled: bool
    ) -> Settings:
        """Reload the settings and, after SIGHUP, the TLS files. Returns the settings that apply now."""
        self._retry.plan(FAULT_SECONDS)
        try:
            if self.tls is not None and signalled:
                await self.tls.reload(forced=True)
            # Use a thread, because a policy of a thousand rules takes a second, and the event loop must answer
            # requests.
            loaded, following = await asyncio.to_thread(self._read, current)
            if self.files.has_changed():
                raise SettingsError("The files changed while they were read.")
            if following != current:
                self._retry.back_off()
                await apply(following)
                await asyncio.to_thread(self._store_applied, Reloadable.from_settings(following))
        except ClustercertError as failure:
            if isinstance(failure, Conflict):
                # The settings conflict with a cluster's exemption or a domain's name until an operator ends the
                # conflict.
                self._retry.plan(FAULT_SECONDS)
            metrics.RELOADS.labels("settings", "failed").inc()
            logger.error("settings not reloaded", error=failure.message)  # noqa: TRY400 - a traceback would add nothing
            return current
        except Exception:
            metrics.RELOADS.labels("settings", "failed").inc()
            logger.exception("settings not reloaded")
            return current
        self._retry.clear()
        metrics.RELOADS.labels("settings", "done").inc()
        await asyncio.to_thread(_log_reloaded, current, following, loaded)
        return following

    def _read(self, current: Settings) -> tuple[Settings, Settings]:
        """Read the settings, and run the policy's examples.

        Returns the settings that were read, and the current settings with the policy and issuers that were read.
        """
        self.files.mark()
        loaded = self.load()
        return loaded, with_reloadable(current, loaded)

    def _store_applied(self, applied: Reloadable) -> None:
        if self.applied is None:
            return
        try:
            self.applied.write(applied)
        except OSError as failure:
            # A worker that starts later loads and checks the settings itself, a few seconds after its start.
            logger.warning("settings not stored for workers that start later", error=str(failure))


def with_reloadable(current: Settings, loaded: Settings) -> Settings:
    """Return the current settings with policy and issuers from the loaded settings.

    Raises SettingsError if the loaded settings seem to come from an empty or half-written file, if the policy's
    examples fail, or if the issuers don't fit the current settings.
    """
    if differing := [name for name in FIXED if getattr(loaded, name) != getattr(current, name)]:
        raise SettingsError(
            f"{', '.join(differing)}: differs from the running service. If this is intended, restart the service."
        )
    if loaded.policy.is_unwritten and not current.policy.is_unwritten:
        raise SettingsError(
            "policy: has neither rules nor role_groups. If roles should give groups for up to 5 years, set"
            " policy.role_groups to true."
        )
    try:
        # The loaded issuers fit the loaded Keystone settings. The service keeps the current Keystone settings, which
        # may differ.
        IdentitySettings.model_validate(dict(current.identity) | {"issuers": loaded.identity.issuers})
    except ValidationError as error:
        raise SettingsError(f"identity.issuers: {error.errors()[0]['msg']}. Restart the service.") from error
    following = Reloadable.from_settings(loaded).in_settings(current)
    following.check_examples()
    return following


def _log_reloaded(current: Settings, following: Settings, loaded: Settings) -> None:
    logger.info(
        "settings reloaded",
        changed=list(changed_fields(current, following)),
        needs_restart=list(changed_fields(following, loaded)),
        settings_sha256=settings_digest(following),
        policy_sha256=policy_digest(following.policy.policy()),
        **changed_rules(current.policy, following.policy),
        **changed_issuers(current.identity, following.identity),
    )


def changed_rules(before: PolicySettings, after: PolicySettings) -> dict[str, list[str]]:
    """Return the names of rules by the kind of change: `rules_added`, `rules_removed`, `rules_changed`."""
    old, new = ({rule.name: rule for rule in policy.all_rules} for policy in (before, after))
    return _changes("rules", old, new)


def changed_issuers(before: IdentitySettings, after: IdentitySettings) -> dict[str, list[str]]:
    """Return the names of issuers by the kind of change: `issuers_added` and so on."""
    old, new = ({issuer.name: issuer for issuer in identity.issuers} for identity in (before, after))
    return _changes("issuers", old, new)


def _changes(what: str, old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, list[str]]:
    found = {
        f"{what}_added": [name for name in new if name not in old],
        f"{what}_removed": [name for name in old if name not in new],
        f"{what}_changed": [name for name in new if name in old and new[name] != old[name]],
    }
    return {kind: names[:MAX_NAMED] for kind, names in found.items() if names}


def changed_fields(before: BaseModel, after: BaseModel, prefix: str = "") -> Iterator[str]:
    """Yield the names of the fields that differ, such as `server.port`."""
    for name in type(before).model_fields:
        old, new = getattr(before, name), getattr(after, name)
        if old == new:
            continue
        if isinstance(old, BaseModel) and isinstance(new, BaseModel):
            yield from changed_fields(old, new, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
