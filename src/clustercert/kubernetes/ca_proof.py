"""Proves which client CAs the API servers of a cluster accept, with temporary certificates of these CAs."""

import asyncio
import ipaddress
import itertools
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar

import structlog
from cachetools import LRUCache

from clustercert.kube_api import ApiServerRefused, ClientIdentity, KubeApi, printable
from clustercert.kubernetes.cluster_connections import CertificateIssuer
from clustercert.kubernetes.verify.probe import Denied, NotAuthenticated, Probe
from clustercert.model import (
    Caller,
    ClientCA,
    Cluster,
    Domain,
    Grant,
    Issued,
    IssueRequest,
    Origin,
    PublicKey,
    User,
    credential_group,
)
from clustercert.model.addresses import is_local_address
from clustercert.model.ca_rotation import CaProof
from clustercert.model.choices import ProofOutcome
from clustercert.model.errors import ClustercertError, Conflict, RemoteFailed, Unavailable
from clustercert.model.issuance import VERIFICATIONS
from clustercert.model.kubernetes import CA_PROVER, SERVICE
from clustercert.pki.keys import key_pem
from clustercert.pki.leaf import der_pem
from clustercert.policy.lifetime import BACKDATE

logger = structlog.get_logger()

T = TypeVar("T")

# Each certificate is used for several proofs, so that proofs don't fill the ledger.
LIFETIME = timedelta(minutes=30)
RENEWED_BEFORE_END = timedelta(minutes=5)
MAX_CACHED = 4096
# The time for one API server. An API server that takes longer is not proved.
SECONDS = 5.0
# A cluster with more API servers is an error: EndpointSlices come from the cluster.
MAX_ADDRESSES = 64
MAX_DETAIL = 300
NOT_REACHED = (
    "This service can't connect to an API server of the cluster at this address. The log of this "
    "service says why."
)

_SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
_MAX_SLICES_BYTES = 128 * 1024
_OF_API_SERVERS = {"labelSelector": "kubernetes.io/service-name=kubernetes"}


class ClusterCaller(Protocol):
    """Calls API servers with the service's own certificate; implemented by `cluster_connections`."""

    async def call(self, cluster: Cluster, work: Callable[[KubeApi], Awaitable[T]]) -> T: ...


@dataclass(frozen=True, slots=True)
class _Temporary:
    issued: Issued
    identity: ClientIdentity


@dataclass(slots=True)
class CaProver:
    """Connects to API servers with temporary certificates, which are in the ledger and have no groups.

    Attributes:
        issuer: issues certificates without role bindings.
        now: returns the current time in UTC.
    """

    issuer: CertificateIssuer
    connections: ClusterCaller
    now: Callable[[], datetime]
    _certificates: LRUCache[str, _Temporary] = field(default_factory=lambda: LRUCache(MAX_CACHED))

    async def api_servers(self, cluster: Cluster) -> tuple[str, ...]:
        """Return the addresses of the cluster's API servers.

        Returns the operator's list, or else the cluster's address. Asks the cluster only if an operator allowed it,
        because its administrators could lead this service to any address. Raises Unavailable if the cluster does not
        answer, because an API server that is left out would not be proved. Raises RemoteFailed if the answer is
        unusable.
        """
        if cluster.api_servers:
            return cluster.api_servers
        if not cluster.options.discover_api_servers:
            return (cluster.internal_url,)
        try:
            slices = await self.connections.call(
                cluster, lambda api: api.get(_SLICES, _OF_API_SERVERS, max_bytes=_MAX_SLICES_BYTES)
            )
        except ClustercertError as error:
            raise Unavailable(
                "The addresses of the cluster's API servers can't be read from its EndpointSlices. Apply the files of"
                " `clustercert kubernetes setup`, or list the addresses with `clustercert cluster update --api-server`."
                f" The cause: {error.message}"
            ) from error
        return tuple(sorted(set(_addresses(slices))))

    async def prove(self, cluster: Cluster, ca: ClientCA, addresses: Sequence[str]) -> tuple[CaProof, ...]:
        """Try a certificate of the CA at each address. Raises SignerError, RemoteFailed or Unavailable."""
        temporary = await self._temporary(cluster, ca)
        return tuple(await asyncio.gather(*(self._try(cluster, ca, each, temporary) for each in addresses)))

    async def issue(self, cluster: Cluster, ca: ClientCA, key: PublicKey | None, origin: Origin) -> Issued:
        """Issue a temporary certificate of a CA. Raises SignerError, RemoteFailed, Unavailable or Conflict.

        Args:
            key: the key of somebody who proves the CA elsewhere; None for a new key.
        """
        issued_at = self.now().replace(microsecond=0)
        if ca.not_after <= issued_at:
            raise Conflict(f"The client CA {ca.id} has expired.")
        grant = Grant(
            rule=None,
            # A server that was not shown the certificate can't know this name, and so can't fake a proof.
            username=f"{CA_PROVER}:{secrets.token_hex(16)}",
            groups=(),
            not_before=issued_at - BACKDATE,
            not_after=min(issued_at + LIFETIME, ca.not_after),
        )
        caller = Caller(
            user=User(id=CA_PROVER, name=CA_PROVER, domain=Domain(id="", name="")),
            roles={},
            method=VERIFICATIONS[CA_PROVER],
            origin=origin,
        )
        request = IssueRequest(public_key=key, reason="proving which client CA the API servers accept")
        return await self.issuer.issue_granted(
            caller, replace(cluster, client_ca=ca), grant, request, issued_at
        )

    async def _temporary(self, cluster: Cluster, ca: ClientCA) -> _Temporary:
        cached = self._certificates.get(ca.id)
        if cached is not None and self.now() < cached.issued.grant.not_after - RENEWED_BEFORE_END:
            return cached
        issued = await self.issue(cluster, ca, None, Origin.local())
        if issued.private_key is None:
            raise RuntimeError("a certificate was issued without its key")
        identity = ClientIdentity(der_pem(issued.leaf_der), key_pem(issued.private_key))
        self._certificates[ca.id] = made = _Temporary(issued, identity)
        return made

    async def _try(self, cluster: Cluster, ca: ClientCA, address: str, temporary: _Temporary) -> CaProof:
        outcome, detail = await _outcome(cluster, address, temporary)
        # The text may come from the server.
        return CaProof(ca.id, address, outcome, self.now(), SERVICE, printable(detail, MAX_DETAIL))


async def _outcome(cluster: Cluster, address: str, temporary: _Temporary) -> tuple[ProofOutcome, str]:
    """Return how the API server treats the certificate, and the reason if nothing is proved."""
    grant = temporary.issued.grant
    group = credential_group(temporary.issued.credential_number)
    try:
        async with KubeApi(address, cluster.server_ca_pem, temporary.identity, seconds=SECONDS) as api:
            identity = await Probe(api).who_am_i()
    except NotAuthenticated:
        return "refused", ""
    except ClustercertError as error:
        # An API server that denies the request names the user whom it has authenticated.
        if isinstance(error, Denied) and f'User "{grant.username}"' in error.message:
            return "accepted", ""
        if _has_answered(error):
            return "failed", error.message
        # The cause would tell the project's admins what listens at an address in this service's network.
        logger.info(
            "api server not reached for a proof", cluster=cluster.id, address=address, cause=error.message
        )
        return "failed", NOT_REACHED
    if identity.username != grant.username or group not in identity.groups:
        return "failed", f"The server at this address sees the user {identity.username}. Is it a proxy?"
    return "accepted", ""


def _has_answered(error: BaseException | None) -> bool:
    """Whether the cause of an error is an answer of the API server."""
    while error is not None and not isinstance(error, ApiServerRefused | Denied):
        error = error.__cause__
    return error is not None


def _addresses(slices: Any) -> Iterator[str]:
    """Yield the URLs of the endpoints in a list of EndpointSlices. Raises RemoteFailed."""
    try:
        found = tuple(itertools.islice(_endpoints(slices), MAX_ADDRESSES + 1))
        if len(found) > MAX_ADDRESSES:
            raise RemoteFailed(f"The cluster's EndpointSlice names more than {MAX_ADDRESSES} API servers.")
        hosts = [(ipaddress.ip_address(str(address)), _checked_port(port)) for address, port in found]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise RemoteFailed(
            "The cluster's EndpointSlice default/kubernetes has unexpected content."
        ) from error
    if not hosts:
        raise RemoteFailed("The cluster's EndpointSlice default/kubernetes names no API server.")
    for host, port in hosts:
        # Kubernetes refuses these addresses too, unless a hostile API server answers.
        if is_local_address(host) or getattr(host, "scope_id", None):
            raise RemoteFailed(
                f"The cluster's EndpointSlice names the address {host}, which is not the address of an API server. Name"
                " the API servers with `clustercert cluster update --api-server`."
            )
        yield f"https://[{host}]:{port}" if host.version == 6 else f"https://{host}:{port}"  # noqa: PLR2004


def _endpoints(slices: Any) -> Iterator[tuple[object, object]]:
    """Yield address and port of each endpoint. The cluster chooses the lists, so no list is read once for each item."""
    for each in slices["items"]:
        port = next((port["port"] for port in each["ports"] if port.get("name") == "https"), None)
        if port is not None:
            for endpoint in each["endpoints"]:
                for address in endpoint["addresses"]:
                    yield address, port


def _checked_port(port: object) -> int:
    if type(port) is not int or not 0 < port < 1 << 16:
        raise ValueError(f"{port!r} is not a port")
    return port
