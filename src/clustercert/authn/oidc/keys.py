"""Fetches, parses and caches the signing keys of OIDC issuers."""

import asyncio
import base64
import json
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import structlog
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey

from clustercert.authn.oidc.claims import TokenRefused
from clustercert.authn.oidc.connection import REQUEST_SECONDS, FetchFailed, connected, discovery_document, get
from clustercert.authn.oidc.issuers import OidcIssuer
from clustercert.background import wait_for_stop
from clustercert.http_client import HttpClient
from clustercert.model import JsonObject
from clustercert.model.errors import CredentialUnverified
from clustercert.model.requests import is_https_url
from clustercert.observability import metrics
from clustercert.pki.keys import MAX_RSA_EXPONENT

MAX_KEYS = 100
# Shorter RSA keys are weak, and longer RSA keys make verification slow.
_RSA_BITS = range(2048, 8192 + 1)
# The maximum length of a modulus or exponent in base64. A modulus of 8192 bits is shorter.
_MAX_NUMBER_TEXT = 2048
_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
# RFC 9864 names the algorithm of Ed25519 keys after the curve. Most issuers still use the older name, from RFC 8037.
_BY_CURVE = {
    "P-256": frozenset({"ES256"}),
    "P-384": frozenset({"ES384"}),
    "P-521": frozenset({"ES512"}),
    "Ed25519": frozenset({"Ed25519", "EdDSA"}),
}
# Members of public keys. Other members, such as the private exponent, are dropped before a key is imported.
_MEMBERS = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}


class UnusableKeySet(Exception):
    """A response is not a JSON Web Key Set. The message says why."""


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key of an issuer.

    Attributes:
        id: the key's `kid`; empty if the key has no `kid`.
        algorithms: the algorithms that the key may be used with.
    """

    id: str
    algorithms: frozenset[str]
    key: RSAKey | ECKey | OKPKey = field(repr=False)


def parse_key_set(content: bytes) -> tuple[VerificationKey, ...]:
    """Return the keys that can verify signatures. Raises UnusableKeySet.

    Skips other keys, such as keys for encryption. A set without usable keys is valid: an issuer may withdraw all keys.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise UnusableKeySet("the key set is not JSON") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise UnusableKeySet('the key set has no list "keys"')
    if len(entries) > MAX_KEYS:
        raise UnusableKeySet(f"the key set has more than {MAX_KEYS} keys")
    return tuple(_usable(entries))


def _usable(entries: list[object]) -> Iterator[VerificationKey]:
    for entry in entries:
        if isinstance(entry, dict) and (key := _key(entry)) is not None:
            yield key


def _key(entry: JsonObject) -> VerificationKey | None:
    kind, key_id, operations = entry.get("kty"), entry.get("kid", ""), entry.get("key_ops", ["verify"])
    members = _MEMBERS.get(kind) if isinstance(kind, str) else None
    if members is None or not isinstance(key_id, str) or entry.get("use", "sig") != "sig":
        return None
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    public: dict[str, str | list[str]] = {name: str(entry.get(name)) for name in members}
    public["kty"] = str(kind)
    try:
        key = _import(public)
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    algorithms = _RSA if isinstance(key, RSAKey) else _BY_CURVE[str(public["crv"])]
    declared = entry.get("alg")
    if declared is not None:
        algorithms &= {declared} if isinstance(declared, str) else set()
    return VerificationKey(key_id, algorithms, key) if algorithms else None


def _import(public: dict[str, str | list[str]]) -> RSAKey | ECKey | OKPKey:
    """Import a public key. Raises ValueError or JoseError."""
    if public["kty"] == "RSA":
        # Measure the number, not the encoded bytes: leading zeros would make a short modulus look long.
        if _number(str(public["n"])).bit_length() not in _RSA_BITS:
            raise ValueError("RSA key size")
        # The time to verify a signature is proportional to the exponent's length.
        if _number(str(public["e"])) >= MAX_RSA_EXPONENT:
            raise ValueError("RSA exponent")
        return RSAKey.import_key(public)
    if public["crv"] not in _BY_CURVE:
        raise ValueError("curve")
    return ECKey.import_key(public) if public["kty"] == "EC" else OKPKey.import_key(public)


def _number(text: str) -> int:
    """Decode a number strictly, so that the library can't read it as a different number. Raises ValueError."""
    if len(text) > _MAX_NUMBER_TEXT:
        raise ValueError("RSA key size")
    return int.from_bytes(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))


FetchKeys = Callable[[], Awaitable[tuple[VerificationKey, ...]]]


async def fetch_keys(
    issuer: OidcIssuer,
    seconds: float = REQUEST_SECONDS,
    from_cluster: Callable[[str], Awaitable[bytes]] | None = None,
) -> tuple[VerificationKey, ...]:
    """Fetch the keys of an issuer. Raises FetchFailed.

    Args:
        from_cluster: fetches the key set of the registered cluster with this id. Raises FetchFailed.
    """
    try:
        async with asyncio.timeout(seconds):
            if issuer.cluster is not None and from_cluster is not None:
                return parse_key_set(await from_cluster(issuer.cluster))
            if issuer.keys_file is not None:
                return parse_key_set(await asyncio.to_thread(issuer.keys_file.read_bytes))
            async with connected(issuer, seconds) as client:
                address = issuer.jwks_uri or await _discover(client, issuer, seconds)
                return parse_key_set(await get(client, address, seconds))
    except TimeoutError:
        raise FetchFailed(f"no complete response within {seconds:g} seconds") from None
    except UnusableKeySet as error:
        raise FetchFailed(str(error)) from None
    except OSError as error:
        raise FetchFailed(f"{issuer.keys_file}: {error.strerror or error}") from None


async def _discover(client: HttpClient, issuer: OidcIssuer, seconds: float) -> str:
    """Return the address of the keys, from the discovery document."""
    document = await discovery_document(client, issuer, seconds)
    address = document.get("jwks_uri")
    if not isinstance(address, str) or not is_https_url(address):
        raise FetchFailed("the discovery document has no https address in jwks_uri")
    return address


REFRESH_SECONDS = 300
# After a failed fetch, or a fetch because of an unknown key, requests don't cause another fetch for this time.
PAUSE_SECONDS = 30
# When the service stops, a running fetch is cancelled after this time.
STOP_SECONDS = 1
# While the issuer can't be reached, its keys are used for at most this time after the last successful fetch.
MAX_AGE_SECONDS = 24 * 3600
# The maximum number of requests that wait for one issuer. Without this maximum, waiting requests could use up the
# number of requests that a worker handles at the same time.
MAX_WAITING = 64

logger = structlog.get_logger()


class IssuerKeys:
    """Finds an issuer's keys. While the issuer can't be reached, only tokens signed with unknown keys are rejected.

    Attributes:
        version: a number that changes with the keys. Cached tokens verified with an older version are not used.
        failure: why the last fetch failed; empty if the last fetch succeeded.
    """

    def __init__(self, name: str, fetch: FetchKeys, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._fetch = fetch
        self._clock = clock
        self._keys: tuple[VerificationKey, ...] = ()
        self._fetched_at = self._failed_at = self._sought_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self._waiting = 0
        self._withdrawn: set[str] = set()
        self._version = 0
        self.failure = ""

    @property
    def version(self) -> int:
        self._drop_expired()
        return self._version

    async def find(self, key_id: str | None, algorithm: str) -> VerificationKey:
        """See `KeyLookup`. Fetches the keys again if the key is unknown, at most every 30 seconds."""
        if (key := self._known(key_id, algorithm)) is not None:
            return key
        if self._fetching is not None:
            # The running fetch may have begun before the issuer published the key, so another fetch may follow.
            await self._wait()
            if (key := self._known(key_id, algorithm)) is not None:
                return key
        was_sought = self._may_seek()
        if was_sought:
            if self._fetched_at > float("-inf"):
                # Don't start a pause after the first fetch, because the issuer may publish a new key soon afterwards.
                self._sought_at = self._clock()
            await self._wait()
            if (key := self._known(key_id, algorithm)) is not None:
                return key
        if self.failure:
            raise CredentialUnverified(
                "An identity provider can't be reached. Try again in a moment.", retry_after=PAUSE_SECONDS
            ) from FetchFailed(f"{self._name}: {self.failure}")
        if not was_sought and not self._is_settled(key_id):
            # The issuer may have published the key since the last fetch.
            seconds = max(1, math.ceil(self._sought_at + PAUSE_SECONDS - self._clock()))
            raise CredentialUnverified(
                f"The key of this token is not known yet. Try again in {seconds} seconds.",
                retry_after=seconds,
            )
        listed = ", ".join(each.id for each in self._keys[:10])
        raise TokenRefused("kid", key_id, f"one of the issuer's keys for {algorithm}: {listed}")

    async def watch(self, stop: asyncio.Event) -> None:
        """Fetch the keys now and every five minutes (after a failure: every 30 seconds), until `stop` is set."""
        stopping = asyncio.ensure_future(stop.wait())
        while not stop.is_set():
            await asyncio.wait({self._task(), stopping}, return_when=asyncio.FIRST_COMPLETED)
            await wait_for_stop(stop, PAUSE_SECONDS if self.failure else REFRESH_SECONDS)
        if (fetching := self._fetching) is not None:
            # Let a fast fetch end.
            await asyncio.wait({fetching}, timeout=STOP_SECONDS)
            fetching.cancel()
            await asyncio.wait({fetching})

    def _known(self, key_id: str | None, algorithm: str) -> VerificationKey | None:
        self._drop_expired()
        usable = [key for key in self._keys if algorithm in key.algorithms]
        if key_id is None:
            # Without a key id, use the key only if no other key supports the algorithm.
            return usable[0] if len(usable) == 1 else None
        return next((key for key in usable if key.id == key_id), None)

    def _drop_expired(self) -> None:
        if self._keys and self._clock() - self._fetched_at > MAX_AGE_SECONDS:
            self._replace(())

    def _is_settled(self, key_id: str | None) -> bool:
        """Whether another fetch would be useless, because the key was withdrawn or is for another algorithm."""
        return key_id is None or key_id in self._withdrawn or any(key.id == key_id for key in self._keys)

    def _may_seek(self) -> bool:
        return self._clock() - max(self._failed_at, self._sought_at) >= PAUSE_SECONDS

    async def _wait(self) -> None:
        """Wait for the running fetch, or start a fetch. If the waiting request is cancelled, the fetch continues."""
        if self._waiting >= MAX_WAITING:
            raise CredentialUnverified(
                "An identity provider responds slowly. Try again in a moment.", retry_after=PAUSE_SECONDS
            )
        self._waiting += 1
        try:
            await self._fetched()
        finally:
            self._waiting -= 1

    async def _fetched(self) -> None:
        fetching = self._task()
        try:
            await asyncio.shield(fetching)
        except asyncio.CancelledError:
            if not fetching.cancelled():
                raise
            # The settings were reloaded, and do not contain this issuer any more.
            raise CredentialUnverified(
                "The identity providers of this service have changed. Try again in a moment.", retry_after=1
            ) from None

    def _task(self) -> asyncio.Task[None]:
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._refresh())
            self._fetching.add_done_callback(self._finished)
        return self._fetching

    def _finished(self, _: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _refresh(self) -> None:
        try:
            keys = await self._fetch()
        except FetchFailed as error:
            self._note_failure(str(error))
        except Exception:
            logger.exception("issuer keys not fetched", issuer=self._name)
            self._note_failure("unexpected error")
        else:
            metrics.ISSUER_FETCHES.labels(self._name, "done").inc()
            if self.failure:
                logger.info("issuer keys fetched again", issuer=self._name)
            self.failure, self._fetched_at = "", self._clock()
            if not keys:
                logger.warning("issuer has no usable keys", issuer=self._name)
            self._replace(keys)

    def _note_failure(self, reason: str) -> None:
        metrics.ISSUER_FETCHES.labels(self._name, "failed").inc()
        if reason != self.failure:
            logger.warning(
                "issuer keys not fetched", issuer=self._name, reason=reason, known_keys=len(self._keys)
            )
        self.failure, self._failed_at = reason, self._clock()

    def _replace(self, keys: tuple[VerificationKey, ...]) -> None:
        if [_identity(key) for key in keys] != [_identity(key) for key in self._keys]:
            self._version += 1
            self._withdrawn = {key.id for key in self._keys} - {key.id for key in keys}
        self._keys = keys


def _identity(key: VerificationKey) -> tuple[str, frozenset[str], str]:
    return key.id, key.algorithms, key.key.thumbprint()
