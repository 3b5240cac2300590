"""The interface of signers. A signer creates client CAs, and signs leaves and CRLs with the CAs' keys.

Signers are plugins in the entry point group `clustercert.signers`. No other code uses a client CA's key.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar, runtime_checkable

from clustercert.model import ClientCA, Cluster, KeyType, SigningRequest
from clustercert.model.choices import LeafProfile
from clustercert.model.clusters import Registration
from clustercert.model.errors import SignerError
from clustercert.model.group_roles import RoleGrant
from clustercert.model.issuance import IssuedToken
from clustercert.pki.crl import CrlContent
from clustercert.pki.envelope import SecretSealer

# The built-in signer, which is always installed.
LOCAL = "local"


@dataclass(frozen=True, slots=True)
class CaRequest:
    """The client CA that a signer must create.

    Attributes:
        registration: the cluster's addresses, for signers that connect to the cluster.
        not_before, lifetime: the CA's validity, in whole seconds.
        secret: the credential that the signer needs for this cluster, if it needs one; never stored in plain text.
    """

    cluster_id: str
    registration: Registration
    key_type: KeyType
    not_before: datetime
    lifetime: timedelta
    secret: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class KeyCustody:
    """Where a client CA's key is, as read from that place now.

    Attributes:
        location: one line of text, such as the name of a token and the id of the key.
        proof: properties of the key, by name.
        access_policy: the text of the policy that the signer's account needs at that place; None if there is none.
    """

    location: str
    proof: Mapping[str, str] = field(default_factory=dict)
    access_policy: str | None = None


@dataclass(frozen=True, slots=True)
class SignerAccess:
    """The access of a signer to a cluster, which it renews itself.

    Attributes:
        renew_at: from when on the signer tries to renew the access.
        expires_at: when the access ends if it is not renewed.
    """

    renew_at: datetime
    expires_at: datetime


class LeafSigner(Protocol):
    """Signs leaves.

    Attributes:
        takes_serial: whether the signer uses the requested serial. Other signers choose the serial themselves, and take
            only the credential number in the subject from this service.
        profile: how the signer encodes leaves. A signer with the profile `kubernetes` needs a CSR, so it can't sign
            for keys that callers generate.
    """

    @property
    def takes_serial(self) -> bool: ...

    @property
    def profile(self) -> LeafProfile: ...

    async def sign(self, request: SigningRequest) -> tuple[bytes, ...]:
        """Sign a leaf. Returns the chain in DER, leaf first, without the root.

        The caller compares the chain with the request, see `leaf.check_leaf`. Raises only SignerError, RemoteFailed or
        Unavailable, or InvalidRequest if the lifetime is too short for the signer.
        """


class Signer(LeafSigner, Protocol):
    """Creates client CAs, and signs leaves and CRLs. Raises SignerError, RemoteFailed or Unavailable.

    Attributes:
        is_ca_of_cluster: whether the client CA is the cluster's own CA, which the API servers trust also for other
            certificates. Such a CA can't be removed from the API servers.
    """

    @property
    def is_ca_of_cluster(self) -> bool: ...

    async def create_ca(self, request: CaRequest) -> ClientCA:
        """Create a client CA in the state `active`. The caller stores the CA. May also raise InvalidRequest."""

    async def sign_crl(self, ca: ClientCA, content: CrlContent) -> bytes:
        """Sign a CRL for a client CA. Returns DER, which the caller checks with `crl.check_crl`.

        Raises NotFound if the signer can't sign CRLs for this CA.
        """

    async def custody(self, ca: ClientCA) -> KeyCustody:
        """Return where the CA's key is."""

    async def accept_secret(self, ca: ClientCA, registration: Registration, secret: bytes) -> bytes:
        """Check a new credential for a CA. Returns the credential, sealed, for `ClientCA.sealed_key`.

        Raises InvalidRequest if the credential does not work, or if the signer takes none.
        """

    async def maintain(self, ca: ClientCA) -> SignerAccess | None:
        """Renew the signer's access to the place that signs for a CA. Called every 15 minutes for each CA.

        Returns the access, or None if it does not expire.
        """

    async def delete_key(self, ca: ClientCA) -> str:
        """Delete the CA's key. Returns a sentence that says what happened to the key.

        If the key is already deleted, does nothing. The caller deletes `sealed_key` from the database.
        """

    async def close(self) -> None:
        """Release the signer's connections and threads."""


@dataclass(frozen=True, slots=True)
class TokenOrder:
    """A service account with a token, to be created in a cluster.

    Attributes:
        number: the credential number, 40 lower-case hex digits.
        roles: the roles to bind to the account; at most `MAX_BINDINGS`.
        not_after: the end of the grant. The token may expire earlier, or if this is less than 10 minutes away, later.
    """

    cluster: Cluster
    number: str
    user_id: str
    user_name: str
    roles: tuple[RoleGrant, ...]
    not_after: datetime


@runtime_checkable
class TokenIssuer(Protocol):
    """What a signer with the profile `token` can do besides. Raises SignerError, RemoteFailed or Unavailable."""

    async def issue_token(self, order: TokenOrder) -> IssuedToken:
        """Create the service account, its token and its bindings. Undoes its steps after a failure.

        Also raises Unavailable if the last look at the cluster found a problem.
        """

    async def end_token(self, cluster: Cluster, number: str) -> None:
        """Delete the bindings and then the service account of a credential number, if they exist."""


def token_issuer(signer: LeafSigner) -> TokenIssuer:
    """Return a signer with the profile `token`. Raises SignerError if it issues no tokens."""
    if isinstance(signer, TokenIssuer):
        return signer
    raise SignerError("This cluster's signer issues no tokens. The operator must install the signer token.")


@dataclass(frozen=True, slots=True)
class SigningCluster:
    """The address of a CA's cluster, and the CA's sealed secret.

    Attributes:
        problem: why the cluster gets no tokens now, as the last look at the cluster found; None if nothing is wrong.
    """

    cluster_id: str
    url: str
    server_ca_pem: bytes
    ca_id: str
    sealed_key: bytes | None = field(repr=False)
    problem: str | None = None


class SigningClusters(Protocol):
    """Finds the clusters of CAs, and stores renewed secrets. Raises Unavailable."""

    async def of_ca(self, ca_id: str) -> SigningCluster | None:
        """Return a CA's cluster as stored now, or None if the CA was deleted."""

    async def signed_by(self, cluster_id: str, signer: str) -> SigningCluster | None:
        """Return a cluster with its newest CA of a signer that has a sealed secret, or None."""

    async def exchange_secret(self, ca_id: str, before: bytes, after: bytes) -> bool:
        """Replace a CA's sealed secret if it is still `before`. Returns whether it was replaced."""

    async def installation(self) -> str:
        """Return the id of this installation. Raises Unavailable if there is no audit log yet."""


class ClusterLook(Protocol):
    """Looks at a cluster whose credentials are tokens; implemented by `kubernetes.token_look`."""

    async def __call__(self, api: Any, cluster: Registration, installation: str) -> str | None:
        """Return the problem because of which the cluster may get no tokens, or None.

        Raises ApiServerRefused, RemoteFailed or Unavailable.

        Args:
            api: a `kube_api.KubeApi` with the service's own account in the cluster.
        """


@dataclass(frozen=True, slots=True)
class SignerContext:
    """What a signer is built from.

    Attributes:
        settings: the table `[signers.NAME]` from the settings.
        custody: encrypts the secrets that the signer stores in the database.
        clusters: for signers that connect to clusters; None if there is no database.
        look: for the signer `token`; None if the process does not look at clusters.
    """

    settings: Mapping[str, object] = field(repr=False)
    custody: SecretSealer
    clusters: SigningClusters | None = None
    look: ClusterLook | None = None


# The class or function in a signer's entry point. The call raises ValueError for invalid settings, with a message that
# contains the setting's name but not the value.
SignerFactory = Callable[[SignerContext], Signer]


AnySigner = TypeVar("AnySigner", bound=LeafSigner)


def signer_named(signers: Mapping[str, AnySigner], name: str) -> AnySigner:
    """Return the signer with this name. Raises SignerError if no such signer is installed."""
    if signer := signers.get(name):
        return signer
    raise SignerError(
        f"This cluster's signer {name} is not installed. The operator must install this signer."
    )
