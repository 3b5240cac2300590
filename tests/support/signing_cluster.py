"""A cluster that signs by itself: the double of kube-apiserver with the rights and the policy of the signer."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from clustercert.issuance.signers.csr_api import CsrApiSigner
from clustercert.kubernetes.setup.admission import NAMESPACE
from clustercert.kubernetes.setup.signer_access import NAME, signer_access
from clustercert.model import ClientCA
from clustercert.model.clusters import Registration
from clustercert.pki.envelope import SecretSealer
from clustercert.pki.signer import SigningCluster
from support.apiserver import ApiServer, kinds
from support.apiserver.storage import Document
from support.registered_cluster import Addressed
from support.samples import CLUSTER_ID

_KINDS = {kind.name: kind for kind in kinds.KINDS}


def give_access(double: ApiServer) -> None:
    """Apply the manifest, as an operator does with kubectl."""
    apply_manifest(double, signer_access())


def apply_manifest(double: ApiServer, documents: Iterable[Any]) -> None:
    """Create the objects of a manifest."""
    for document in documents:
        kind = _KINDS[str(document["kind"])]
        metadata: Document = dict(document["metadata"])
        if kind is kinds.NAMESPACES:
            double.add_namespace(metadata["name"])
            continue
        double.storage.create(kind, metadata.get("namespace", ""), {**document, "metadata": metadata})


def first_token(double: ApiServer, seconds: int = 3600) -> bytes:
    """What `kubectl create token` prints."""
    return double.tokens.token(NAMESPACE, NAME, (double.tokens.issuer,), seconds).encode() + b"\n"


def registration_of(double: Addressed) -> Registration:
    return Registration("prod", double.url, double.server_ca.read_bytes(), signer="csr_api")


def requests_in(double: ApiServer) -> list[Document]:
    """The CertificateSigningRequests that are in the cluster."""
    return list(double.storage.all(kinds.CERTIFICATE_REQUESTS))


@dataclass
class MemoryClusters:
    """The clusters of CAs, in memory."""

    double: Addressed
    sealed: dict[str, bytes] = field(default_factory=dict)
    exchanges: int = 0
    signer: str = "csr_api"
    problem: str | None = None

    def store(self, ca: ClientCA) -> ClientCA:
        assert ca.sealed_key is not None
        self.sealed[ca.id] = ca.sealed_key
        return ca

    async def of_ca(self, ca_id: str) -> SigningCluster | None:
        if ca_id not in self.sealed:
            return None
        return SigningCluster(
            CLUSTER_ID,
            self.double.url,
            self.double.server_ca.read_bytes(),
            ca_id,
            self.sealed[ca_id],
            self.problem,
        )

    async def signed_by(self, cluster_id: str, signer: str) -> SigningCluster | None:
        assert (cluster_id, signer) == (CLUSTER_ID, self.signer)
        return await self.of_ca(next(iter(self.sealed), ""))

    async def exchange_secret(self, ca_id: str, before: bytes, after: bytes) -> bool:
        if self.sealed[ca_id] != before:
            return False
        self.sealed[ca_id], self.exchanges = after, self.exchanges + 1
        return True

    async def installation(self) -> str:
        return "0" * 32


def new_signer(
    double: ApiServer,
    clusters: MemoryClusters,
    custody: SecretSealer,
    token_lifetime: timedelta = timedelta(days=7),
) -> CsrApiSigner:
    """A signer with the clock of the double."""
    return CsrApiSigner(clusters, custody, token_lifetime, lambda: double.now())  # noqa: PLW0108 - it may be replaced later


def restarted(signer: CsrApiSigner) -> CsrApiSigner:
    """The signer of another process."""
    return replace(signer)
