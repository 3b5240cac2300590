"""The use case with real keys, policy and certificates; the store's two parts are lists."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace

from clustercert.certificate import LeafBuilder
from clustercert.errors import ClustercertError
from clustercert.issuance import Issuance
from clustercert.keygen import KeyGenerator
from clustercert.model import Ask, AuditEvent, CertificateRecord, Cluster, Grant, SigningRequest
from clustercert.signers import Signer
from nouns import CA_KEY, NOW, POLICY, client_ca, cluster

CA = client_ca()
CLUSTER = cluster(CA)


class HonestSigner:
    takes_serial = True

    async def sign(self, request: SigningRequest) -> tuple[bytes, ...]:
        return (LeafBuilder(request.ca.certificate, CA_KEY).build(request),)


# Of 128 bits, as an external CA may have it.
CHOSEN_SERIAL = 0x7B << 120


class SerialChoosingSigner:
    """Gives each certificate a serial of its own choice."""

    takes_serial = False

    async def sign(self, request: SigningRequest) -> tuple[bytes, ...]:
        assert request.serial is None
        chosen = replace(request, serial=CHOSEN_SERIAL)
        return (LeafBuilder(request.ca.certificate, CA_KEY).build(chosen),)


class FailingSigner:
    takes_serial = True

    def __init__(self, failure: ClustercertError) -> None:
        self.failure = failure

    async def sign(self, request: SigningRequest) -> tuple[bytes, ...]:
        raise self.failure


@dataclass
class Clusters:
    known: Cluster = CLUSTER
    asked: list[tuple[str, str]] = field(default_factory=list)

    async def cluster(self, project_id: str, cluster_id: str) -> Cluster | None:
        self.asked.append((project_id, cluster_id))
        return self.known if (project_id, cluster_id) == (self.known.project_id, self.known.id) else None


@dataclass
class Book:
    """A ledger in memory; with a failure it records nothing."""

    failure: ClustercertError | None = None
    entries: list[tuple[CertificateRecord, AuditEvent]] = field(default_factory=list)
    notes: list[AuditEvent] = field(default_factory=list)

    async def record(self, record: CertificateRecord, event: AuditEvent) -> None:
        if self.failure:
            raise self.failure
        self.entries.append((record, event))

    async def note(self, event: AuditEvent) -> None:
        if self.failure:
            raise self.failure
        self.notes.append(event)


class NoBindings:
    """For clusters whose certificates have the policy's groups."""

    def granted(self, cluster: Cluster, grant: Grant) -> Grant:
        return grant

    @contextlib.asynccontextmanager
    async def bound(self, cluster: Cluster, record: CertificateRecord) -> AsyncIterator[None]:
        yield


def issuance(
    signers: Mapping[str, Signer] | None = None,
    ledger: Book | None = None,
    clusters: Clusters | None = None,
) -> Issuance:
    return Issuance(
        clusters=clusters or Clusters(),
        policy=POLICY,
        keys=KeyGenerator("ec-p256"),
        signers=signers if signers is not None else {"local": HonestSigner()},
        ledger=ledger or Book(),
        bindings=NoBindings(),
        now=lambda: NOW,
    )


ASK = Ask(duration=30, reason="incident 4711")
