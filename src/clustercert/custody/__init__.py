"""Use case: manage the keys that encrypt secrets at rest. `pki.envelope` explains the kinds of keys.

`keks` and `transit` are sources of key-encryption keys, `ring` unwraps the data keys, `rotation` replaces both,
`status` reports on both.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from datetime import datetime

import structlog

from clustercert.background import wait_for_stop
from clustercert.custody.ring import active_id, load, new_active_key
from clustercert.custody.rotation import Rotation
from clustercert.custody.sources import KekSource, locked, open_sources
from clustercert.model import Actor, utc_now
from clustercert.model.errors import Conflict, CustodyError, KeysUnavailable, Unavailable
from clustercert.model.events.administration import KeysChanged
from clustercert.observability import metrics
from clustercert.pki.envelope import DataKey, KeyRing, new_data_key
from clustercert.store.engine.database import Database
from clustercert.store.keys import KeyQueries

FIRST_DATA_KEY = 1

logger = structlog.get_logger()


class Custody:
    """Encrypts and decrypts secrets.

    Each data key is unwrapped once and then kept, so a key management service that fails later stops nothing. Loads new
    data keys after another process has rotated keys.
    """

    # Pause before data keys that could not be unwrapped are tried again.
    RETRY_SECONDS = 2.0
    # Pause between two checks whether the key-encryption keys still work.
    PROBE_SECONDS = 60.0

    def __init__(
        self, database: Database, *sources: KekSource, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._queries = KeyQueries(database)
        self.rotation = Rotation(self._queries, sources, now)
        self._generation = database.generation
        self.sources = sources
        self._now = now
        self._loading = asyncio.Lock()
        self._ring = KeyRing((), active_id=0)
        self._failures: dict[int, CustodyError | KeysUnavailable] = {}
        self._read_at: tuple[int, int] | None = None
        self._retry_at = float("-inf")
        self._was_complete = False
        self._unusable = dict[str, str]()

    async def open(self) -> None:
        """Load all keys. Raises KeysUnavailable, CustodyError if the keys can't be used, or another Unavailable.

        After KeysUnavailable, `watch` tries again.
        """
        await self._load(at_once=True)
        # Report a permanent failure rather than one that may pass.
        for failure in sorted(self._failures.values(), key=lambda each: isinstance(each, KeysUnavailable)):
            raise failure

    def require_opened(self) -> None:
        """Raise KeysUnavailable if this process still waits for keys that existed when it started."""
        if not self._was_complete:
            raise self._failure()

    async def initialise(self, *, actor: Actor | None = None) -> None:
        """Create a data key if the database has none, then call `open`. Several processes may call this at once."""
        async with locked(self.sources):
            if not await self._queries.data_keys():
                opened = await open_sources(self.sources)
                first = await new_active_key(new_data_key(FIRST_DATA_KEY), opened, self._now())
                event = KeysChanged(
                    at=first.created_at,
                    kind="keys.created",
                    actor=actor or Actor.service(),
                    subject=str(first.id),
                    kek_ids=first.kek_ids,
                    data_key_id=first.id,
                )
                # A Conflict means that another process has created the data key.
                with contextlib.suppress(Conflict):
                    await self._queries.add_active(first, event)
        await self.open()

    async def seal(self, plaintext: bytes, bound_to: str) -> bytes:
        """Encrypt a secret for a database row. `bound_to` names the row as `table:id`. Raises Unavailable.

        If a new active data key can't be unwrapped now, an older data key encrypts the secret.
        """
        # After another process has rotated the data keys, this process must use the new data key within a second. The
        # rotation waits a little longer, and then encrypts again all secrets that are sealed with old data keys.
        if not self._generation.fresh() or self._generation.state != self._read_at:
            await self._load()
        if not self._ring.data_keys:
            raise self._failure()
        return self._ring.seal(plaintext, bound_to)

    async def unseal(self, sealed: bytes, bound_to: str) -> bytes:
        """Decrypt a row's secret, without I/O if the secret's data key is loaded. Raises UnsealError or Unavailable."""
        if not self._ring.knows(sealed):
            await self._load()
            if self._failures and not self._ring.knows(sealed):
                raise self._failure()
        return self._ring.unseal(sealed, bound_to)

    def name_hash(self, name: str) -> str:
        """Return a keyed hash of the name in a failed login, for logs and events: 16 lower-case hex digits.

        The key is derived from the active data key. Equal names have equal hashes in all processes until the data keys
        are rotated, and nobody without the data key can try names. Empty if no data key is loaded.
        """
        return self._ring.name_hash(name) if self._ring.data_keys else ""

    async def watch(self, stop: asyncio.Event) -> None:
        """Retry data keys that could not be unwrapped, and check whether the KEKs still work, until `stop` is set."""
        probe_at = float("-inf")
        while not stop.is_set():
            if self._failures:
                # The database may be unavailable too.
                with contextlib.suppress(Unavailable):
                    await self._load(at_once=True)
            if time.monotonic() >= probe_at:
                await self._probe()
                probe_at = time.monotonic() + self.PROBE_SECONDS
            await wait_for_stop(stop, self.RETRY_SECONDS)

    async def close(self) -> None:
        """Close the connections to key management services."""
        for source in self.sources:
            await source.close()

    async def _load(self, *, at_once: bool = False) -> None:
        """Load the data keys that this process has not loaded yet, and note which ones can't be loaded.

        Unless `at_once` is set, does not ask the sources again shortly after a failure, because a request would wait.
        Raises Unavailable if the database can't be read.
        """
        async with self._loading:
            read_at = self._generation.state
            if not at_once and self._failures and time.monotonic() < self._retry_at:
                return
            known = {data_key.id: data_key for data_key in self._ring.data_keys}
            try:
                wrapped, found = await load(self._queries, self.sources, known)
                active = active_id(wrapped)
                data_keys, failures = {**known, **found.data_keys}, dict(found.failures)
            except CustodyError as failure:
                active, data_keys, failures = self._ring.active_id, known, {0: failure}
            self._log(failures)
            self._failures = failures
            self._retry_at = time.monotonic() + self.RETRY_SECONDS
            self._ring = KeyRing(data_keys.values(), _usable_id(active, data_keys))
            self._was_complete = self._was_complete or not failures
            self._read_at = read_at

    def _log(self, failures: dict[int, CustodyError | KeysUnavailable]) -> None:
        """Log failures if they have changed, except those that `open` raises and that end the process."""
        before = {_reason(each) for each in self._failures.values()}
        waiting = [
            each for each in failures.values() if self._was_complete or isinstance(each, KeysUnavailable)
        ]
        for reason in sorted({_reason(each) for each in waiting} - before):
            logger.warning("data keys not usable", reason=reason)
        if self._failures and not failures:
            logger.info("data keys usable again")

    def _failure(self) -> Unavailable:
        """Return an error for a request that needs a data key that could not be loaded."""
        failure = next(iter(self._failures.values()), None)
        if isinstance(failure, KeysUnavailable):
            return KeysUnavailable(failure.reason)
        error = Unavailable("The service can't read its keys. Try again later.")
        error.__cause__ = failure
        return error

    async def _probe(self) -> None:
        """Check each source's first key, as the next start needs it, and log changes."""
        for source in self.sources:
            problem = ""
            try:
                # Wrap a data key that is then forgotten.
                await (await source.keks())[0].wrap(new_data_key(0))
            except (CustodyError, KeysUnavailable) as failure:
                problem = _reason(failure)
            metrics.KEK_USABLE.labels(source.name).set(not problem)
            if problem and problem != self._unusable.get(source.name):
                logger.warning("key-encryption key not usable: a restart would fail or wait", reason=problem)
            elif self._unusable.get(source.name) and not problem:
                logger.info("key-encryption key usable again", source=source.name)
            self._unusable[source.name] = problem


def _usable_id(active: int, data_keys: dict[int, DataKey]) -> int:
    """Return the id of the data key that seals new secrets: the active one, or else the newest one that is usable."""
    if active in data_keys:
        return active
    return max(data_keys, default=0)


def _reason(failure: CustodyError | KeysUnavailable) -> str:
    return failure.reason if isinstance(failure, KeysUnavailable) else failure.message
