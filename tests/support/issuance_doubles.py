"""The issuance service with real keys, policy and certificates. Clusters and ledger are in memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from clustercert.issuance.service import Issuance
from clustercert.model import (
    AuditEvent,
    Caller,
    CertificateRecord,
    Cluster,
    Grant,
    IssueRequest,
    SigningRequest,
)
from clustercert.model.access_requests import RequestedAccess
from clustercert.model.choices import LeafProfile
from clustercert.model.errors import ClustercertError, Forbidden, NotFound
from clustercert.pki.keys import KeyGenerator
from clustercert.pki.signer import LeafSigner
from support.apiserver.certificate_requests import signed_leaf
from support.leaf_builder import LeafBuilder
from support.samples import BACKDATE, CA_KEY, NOW, POLICY, caller, client_ca, cluster

CA = client_ca()
CLUSTER = cluster(CA)


class HonestSigner:
    takes_serial = True
    profile: LeafProfile = "own"

    async def sign(self, request: SigningRequest) -> tuple[bytes, ...]:
        return (LeafBuilder(request.ca.ca_certificate, CA_KEY).build(request),)


# Of 128 bits, as an external CA may have it.
CHOSEN_SERIAL = 0x7B << 120


class SerialChoosingSigner:
    """Chooses the serial itself."""

    takes_serial = False
    profile: LeafProfile = "own"

    async def sign(self, request: SigningRequest) -> tuple[bytes, ...]:
        assert request.serial is None
        chosen = replace(request, serial=CHOSEN_SERIAL)
        return (LeafBuilder(request.ca.ca_certificate, CA_KEY).build(chosen),)


class ClusterSigner:
    """Signs as kube-controller-manager does, for at most `longest`. Is `late` in relation to the request."""

    takes_serial = False
    profile: LeafProfile = "kubernetes"

    def __init__(self, longest: timedelta, late: timedelta = timedelta()) -> None:
        self.longest, self.late = longest, late

    async def sign(self, request: SigningRequest) -> tuple[bytes, ...]:
        assert request.csr is not None
        assert isinstance(CA_KEY, ec.EllipticCurvePrivateKey)
        csr, ca = x509.load_der_x509_csr(request.csr), request.ca.ca_certificate
        at = request.grant.not_before + BACKDATE + self.late
        usages = ("client auth", "digital signature")
        return (signed_leaf(csr, usages, ca, CA_KEY, at, min(request.grant.not_after - at, self.longest)),)


class FailingSigner:
    takes_serial = True
    profile: LeafProfile = "own"

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
class MemoryLedger:
    """A ledger in memory; raises `failure` if set."""

    failure: ClustercertError | None = None
    entries: list[tuple[CertificateRecord, AuditEvent]] = field(default_factory=list)
    notes: list[AuditEvent] = field(default_factory=list)

    async def record(self, record: CertificateRecord, event: AuditEvent) -> None:
        if self.failure:
            raise self.failure
        self.entries.append((record, event))

    async def record_event(self, event: AuditEvent) -> None:
        if self.failure:
            raise self.failure
        self.notes.append(event)


@dataclass
class Accesses:
    """One access request in memory. Its certificates are recorded in the ledger."""

    known: RequestedAccess | None
    ledger: MemoryLedger

    async def access(
        self, _caller: Caller, _cluster: Cluster, request_id: str, _now: datetime
    ) -> RequestedAccess:
        if self.known is None or self.known.request_id != request_id:
            raise NotFound
        return self.known

    async def record(self, record: CertificateRecord, event: AuditEvent) -> None:
        await self.ledger.record(record, event)


@dataclass
class Usernames:
    """The owners of user names, in memory."""

    owners: dict[str, str] = field(default_factory=dict)

    async def claim(self, grant: Grant, user_id: str) -> None:
        if self.owners.setdefault(grant.username, user_id) != user_id:
            trace = {**grant.trace, "username_taken": grant.username}
            raise Forbidden("The user name belongs to another user.", trace=trace)


@dataclass
class ChangingRights:
    """An authentication whose result is out of date the first few times.

    Attributes:
        changes: how many times rights change.
        later: the caller with the changed rights.
    """

    changes: int
    later: Caller = field(default_factory=lambda: caller("admin"))

    def is_current(self) -> bool:
        return self.changes == 0

    async def authenticate(self) -> Caller:
        self.changes -= 1
        return self.later


def issuance(
    signers: Mapping[str, LeafSigner] | None = None,
    ledger: MemoryLedger | None = None,
    clusters: Clusters | None = None,
    now: Callable[[], datetime] = lambda: NOW,
) -> Issuance:
    return Issuance(
        clusters=clusters or Clusters(),
        policy=POLICY,
        keys=KeyGenerator("ec-p256"),
        signers=signers if signers is not None else {"local": HonestSigner()},
        ledger=ledger or MemoryLedger(),
        usernames=Usernames(),
        now=now,
    )


REQUEST = IssueRequest(duration=30, reason="incident 4711")
