"""Rotations of client CAs on a real store, at API servers in memory. The process can be killed at each of its steps."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import NoReturn

from clustercert.clusters.ca_progress import CaProgress
from clustercert.clusters.ca_rotation import CaRotations, RotationOptions
from clustercert.clusters.discarded_keys import DiscardedKeys
from clustercert.issuance.signers.ca_keys import KeySigner
from clustercert.issuance.signers.local import LocalKeys
from clustercert.model import Actor, AuditEvent, ClientCA, Cluster, Origin, PublicKey
from clustercert.model.ca_rotation import CaProof, CaRotation, RotationStatus
from clustercert.model.choices import ProofOutcome
from clustercert.model.errors import SignerError
from clustercert.pki.client_ca import ca_subject
from clustercert.pki.signer import LOCAL, CaRequest
from clustercert.store.clusters.ca_rotations import CaRotationQueries
from clustercert.store.clusters.client_cas import ClientCaQueries
from clustercert.store.clusters.registry import ClusterQueries
from clustercert.store.engine.database import Database
from support.ring_sealer import RingSealer
from support.samples import NOW, PROJECT_ID, client_ca, cluster
from support.stores import ORIGIN, Store, event

BY = Actor("cli:test", ORIGIN)
DRAIN_AFTER = timedelta(seconds=30)


class Killed(BaseException):
    """Stands for the end of the process. No code may catch it."""


@dataclass
class Process:
    """Counts the steps that leave a trace outside of the process, and dies at one of them."""

    left: int | None = None
    killed: int = 0

    def step(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                self.killed += 1
                self.left = None
                raise Killed


class MortalQueries(CaRotationQueries):
    """Dies before or after a commit."""

    def __init__(self, database: Database, process: Process) -> None:
        super().__init__(database)
        self.process = process

    async def start(self, rotation: CaRotation, ca: ClientCA, event: AuditEvent) -> None:
        self.process.step()
        await super().start(rotation, ca, event)
        self.process.step()

    async def save(
        self,
        before: CaRotation,
        after: CaRotation,
        *events: AuditEvent,
        holders: int | None = None,
        now: datetime | None = None,
    ) -> CaRotation:
        self.process.step()
        saved = await super().save(before, after, *events, holders=holders, now=now)
        self.process.step()
        return saved


class MortalSigner(KeySigner):
    """Dies before or after it creates or deletes a key.

    Attributes:
        keys: the ids of the CAs whose keys exist, as in a token outside of the database.
        created: the ids of the CAs that the caller of `create_ca` received.
        fails: whether no key can be deleted now.
        faulty: the ids of the CAs whose keys can't be deleted because of a fault in the signer's program.
        is_ca_of_cluster: see `Signer`.
    """

    def __init__(self, name: str, process: Process) -> None:
        super().__init__(name, LocalKeys(RingSealer()))
        self.process = process
        self.keys: set[str] = set()
        self.created: set[str] = set()
        self.fails = False
        self.faulty: set[str] = set()

    async def create_ca(self, request: CaRequest) -> ClientCA:
        self.process.step()
        made = await super().create_ca(request)
        if made.signer != LOCAL:
            # The key stays in the token.
            made = replace(made, sealed_key=None)
        self.keys.add(made.id)
        self.process.step()
        self.created.add(made.id)
        return made

    async def delete_key(self, ca: ClientCA) -> str:
        if self.fails:
            raise SignerError("The token is not there.")
        if ca.id in self.faulty:
            raise RuntimeError("a fault of this signer")
        self.process.step()
        self.keys.discard(ca.id)
        self.process.step()
        return f"The key of {ca.id} was deleted."


@dataclass
class ApiServers:
    """The API servers of all clusters, as the prover sees them.

    Attributes:
        trusted: by address, the key identifiers of the CAs that the API server trusts.
        silent: addresses that do not answer.
        accepted: the CAs that each address was seen to accept, as (address, CA).
    """

    process: Process
    trusted: dict[str, set[bytes]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    accepted: set[tuple[str, str]] = field(default_factory=set)
    now: datetime = NOW

    async def api_servers(self, cluster: Cluster) -> tuple[str, ...]:
        return cluster.api_servers or (cluster.internal_url,)

    async def prove(self, cluster: Cluster, ca: ClientCA, addresses: Sequence[str]) -> tuple[CaProof, ...]:
        self.process.step()
        return tuple(
            CaProof(ca.id, each, self._outcome(each, ca), self.now, "clustercert:service")
            for each in addresses
        )

    async def issue(self, cluster: Cluster, ca: ClientCA, key: PublicKey | None, origin: Origin) -> NoReturn:
        raise NotImplementedError

    def _outcome(self, address: str, ca: ClientCA) -> ProofOutcome:
        if address in self.silent:
            return "failed"
        if ca_subject(ca.certificate).key_identifier not in self.trusted[address]:
            return "refused"
        self.accepted.add((address, ca.id))
        return "accepted"


@dataclass
class RotationScene:
    """A store, API servers and the use cases."""

    store: Store
    database: Database
    process: Process = field(default_factory=Process)
    now: datetime = NOW
    signers: dict[str, MortalSigner] = field(init=False)
    servers: ApiServers = field(init=False)
    clusters: ClusterQueries = field(init=False)
    rotations: CaRotations = field(init=False)
    progress: CaProgress = field(init=False)
    discarded: DiscardedKeys = field(init=False)

    def __post_init__(self) -> None:
        self.signers = {name: MortalSigner(name, self.process) for name in ("local", "other")}
        self.servers = ApiServers(self.process)
        self.clusters = ClusterQueries(self.database)
        cas = ClientCaQueries(self.database)
        self.rotations = CaRotations(
            MortalQueries(self.database, self.process),
            cas,
            self.clusters,
            self.signers,
            self.servers,
            lambda: self.now,
        )
        self.discarded = DiscardedKeys(cas, self.signers, lambda: self.now)
        self.progress = CaProgress(self.rotations, self.discarded, DRAIN_AFTER)

    def add_project(self) -> None:
        """Add the project of all clusters."""
        self.store.execute("INSERT INTO domain (id, name, enabled) VALUES ('d', 'd', true)")
        self.store.execute(
            "INSERT INTO project (id, domain_id, name, description, enabled, labels)"
            f" VALUES ('{PROJECT_ID}', 'd', 'p', '', true, '{{}}')"
        )

    async def register(self, api_servers: int = 2) -> Cluster:
        """A new cluster, whose API servers trust its CA."""
        cluster_id, ca_id = str(uuid.uuid4()), uuid.uuid4().hex
        addresses = tuple(f"https://{cluster_id}-{number}.example:6443" for number in range(api_servers))
        ca = replace(client_ca(sealed_key=b"sealed"), id=ca_id, cluster_id=cluster_id)
        made = replace(cluster(), id=cluster_id, name=cluster_id[:8], client_ca=ca, api_servers=addresses)
        self.signers["local"].keys.add(ca_id)
        await self.clusters.add(made, event(), 1_000_000)
        await self.trust_bundle(made)
        return made

    async def trust_bundle(self, cluster: Cluster, *addresses: str) -> None:
        """Write the bundle of now to API servers, by default to all."""
        bundle = {ca_subject(ca).key_identifier for ca in await self.clusters.bundle(cluster.id)}
        for address in addresses or cluster.api_servers:
            self.servers.trusted[address] = set(bundle)

    async def current(self, cluster: Cluster) -> Cluster:
        [found] = await self.clusters.clusters_with_ids([cluster.id])
        return found

    async def start(self, cluster: Cluster, **options: object) -> RotationStatus:
        chosen = RotationOptions(**options)  # type: ignore[arg-type] # fields of the dataclass
        return await self.rotations.start(await self.current(cluster), chosen, actor=BY)

    async def status(self, cluster: Cluster) -> RotationStatus:
        return await self.rotations.status(await self.current(cluster))

    async def state(self, cluster: Cluster) -> str:
        return (await self.status(cluster)).rotation.state

    async def step(self, cluster: Cluster, kill_at: int | None = None) -> None:
        """One step of the leader, a minute later. The process may die in it."""
        self.forward(timedelta(minutes=1))
        self.process.left = kill_at
        try:
            await self.progress.advance(cluster.id)
        except Killed:
            pass
        finally:
            self.process.left = None

    async def reach(self, cluster: Cluster, state: str) -> None:
        for _ in range(8):
            if await self.state(cluster) == state:
                return
            await self.step(cluster)
        assert await self.state(cluster) == state

    def forward(self, by: timedelta) -> None:
        self.now = self.servers.now = self.now + by

    def active(self, cluster: Cluster) -> str:
        """The id of the CA that signs. Asserts that there is exactly one, whose key exists."""
        query = "SELECT id, signer, sealed_key FROM client_ca WHERE cluster_id = ? AND state = 'active'"
        [(ca_id, signer, sealed_key)] = self.store.rows(query, cluster.id)
        assert sealed_key is not None
        assert ca_id in self.signers[str(signer)].keys
        return str(ca_id)

    def events(self, cluster: Cluster) -> list[str]:
        """The kinds of the events about the cluster's rotation, oldest first."""
        query = "SELECT kind FROM audit_event WHERE subject = ? AND kind LIKE 'ca_rotation.%' ORDER BY id"
        return [str(kind).removeprefix("ca_rotation.") for (kind,) in self.store.rows(query, cluster.id)]
