"""The signer for clusters whose API server nobody can configure: credentials are tokens of service accounts.

For each credential, this service creates a service account with the roles of the credential's groups. The cluster's API
server, not this service, signs the account's token.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NoReturn, TypeVar

from pydantic import Field

from clustercert.issuance.signers.account_connections import AccountConnections, explained
from clustercert.issuance.signers.account_tokens import AccountToken, new_token, parse_token
from clustercert.issuance.signers.credential_accounts import CredentialAccounts, delete_account
from clustercert.issuance.signers.limited import LimitedSigner, SignerLimits
from clustercert.issuance.signers.signer_settings import parsed_settings
from clustercert.kube_api import KubeApi
from clustercert.model import ClientCA, Cluster, SigningRequest, new_id, rfc3339, utc_now
from clustercert.model.choices import LeafProfile
from clustercert.model.clusters import Registration
from clustercert.model.errors import InvalidRequest, NotFound, SignerError, Unavailable
from clustercert.model.group_roles import RoleGrant
from clustercert.model.issuance import IssuedToken
from clustercert.model.kubernetes import (
    ACCESS_NAMESPACE,
    ISSUER_ACCOUNT,
    ISSUER_USER,
    TOKEN_SIGNER,
    USERS_NAMESPACE,
)
from clustercert.model.token_objects import TokenObjects
from clustercert.pki.crl import CrlContent
from clustercert.pki.envelope import SecretSealer
from clustercert.pki.signer import (
    CaRequest,
    ClusterLook,
    KeyCustody,
    SignerAccess,
    SignerContext,
    SigningClusters,
    TokenOrder,
)
from clustercert.policy.setting_types import Lifetime

T = TypeVar("T")

NAME = TOKEN_SIGNER

_ISSUER_PATH = f"/api/v1/namespaces/{ACCESS_NAMESPACE}/serviceaccounts/{ISSUER_ACCOUNT}"
_TOKEN_ADVICE = (
    f"Create a token with `kubectl create token -n {ACCESS_NAMESPACE} {ISSUER_ACCOUNT}`, and give it with"
    " --signer-token-file."
)
_VERIFY_ADVICE = "`clustercert kubernetes verify CLUSTER` shows the operator what is wrong."
_FORBIDDEN_ADVICE = (
    "The cluster forbids what the service's account asks for: the account lacks a right, or an admission policy"
    f" refuses the request. {_VERIFY_ADVICE}"
)


class TokenSettings(SignerLimits):
    """`[signers.token]`: tokens of service accounts, which the cluster's API server signs.

    All limits are for each cluster. See [Clusters with tokens](token-clusters.md).

    Attributes:
        token_lifetime: lifetime of the tokens with which the service logs in to clusters. The service renews a token
            after half of this time.
        concurrency: number of credentials that are created in a cluster at the same time, per worker.
        queue: number of requests that may wait for a cluster, per worker. Further requests get status 503.
        timeout: longest time in seconds for waiting and creating together. After this time, the request gets status
            503.
    """

    token_lifetime: Lifetime = Field(default=timedelta(days=7), ge=timedelta(hours=1), le=timedelta(days=90))
    concurrency: int = Field(default=8, ge=1, le=256)
    queue: int = Field(default=256, ge=1, le=100_000)
    timeout: float = Field(default=15, gt=0, le=25)


def token_signer(context: SignerContext) -> "LimitedTokenSigner":
    """Build the signer. Raises ValueError for invalid settings."""
    settings = parsed_settings(TokenSettings, context.settings)
    if context.clusters is None:
        raise ValueError("the signer token needs the service's database")
    signer = TokenSigner(context.clusters, context.custody, settings.token_lifetime, context.look)
    return LimitedTokenSigner(signer, settings)


@dataclass(slots=True)
class TokenSigner:
    """Creates service accounts with tokens and bindings. Its `ClientCA` contains only the service's own token.

    Attributes:
        token_lifetime: lifetime of renewed tokens of the service's own account.
        look: looks for problems in a cluster; None if this process can't look.
        now: returns the current time in UTC.
    """

    clusters: SigningClusters
    custody_of_secrets: SecretSealer
    token_lifetime: timedelta
    look: ClusterLook | None
    now: Callable[[], datetime] = utc_now
    _installation: str | None = None
    _connections: AccountConnections[CredentialAccounts] = field(init=False)

    def __post_init__(self) -> None:
        self._connections = AccountConnections(
            self.clusters, self.custody_of_secrets, CredentialAccounts, self.token_lifetime, self.now
        )

    @property
    def takes_serial(self) -> bool:
        """No: the API server chooses the token's id."""
        return False

    @property
    def profile(self) -> LeafProfile:
        """This signer signs no leaves."""
        return "token"

    @property
    def is_ca_of_cluster(self) -> bool:
        """Yes: the cluster itself signs, and the service sends a credential to the cluster."""
        return True

    async def create_ca(self, request: CaRequest) -> ClientCA:
        """Check the cluster and the given token, and return a `ClientCA` without a certificate.

        Raises InvalidRequest if the cluster or the token is not fit.
        """
        if request.secret is None:
            raise InvalidRequest(
                f"signer_token: the signer token needs a token of its service account. {_TOKEN_ADVICE}"
            )
        ca_id = new_id()
        token = await self._checked(request.registration, request.secret)
        return ClientCA(
            id=ca_id,
            cluster_id=request.cluster_id,
            certificate=None,
            sealed_key=await self._connections.sealed(ca_id, token),
            signer=NAME,
            key_reference=token.username,
        )

    async def sign(self, _request: SigningRequest) -> tuple[bytes, ...]:
        """Raise SignerError: there are no certificates."""
        _refuse_certificates()

    async def sign_crl(self, _ca: ClientCA, _content: CrlContent) -> bytes:
        """Raise NotFound: there are no certificates."""
        raise NotFound(
            "This cluster's credentials are tokens of service accounts, so the cluster has no CRL."
        )

    async def custody(self, ca: ClientCA) -> KeyCustody:
        """Return what the cluster says about the service's account."""
        async with self._connections.opened(ca) as connection:
            with explained(_FORBIDDEN_ADVICE):
                await connection.api.get(_ISSUER_PATH)
            return KeyCustody(
                "the cluster's API server, which signs the tokens; this service has only a token of its own account",
                {
                    "account": connection.token.username,
                    "token_expires_at": rfc3339(connection.token.expires_at),
                    "problem": connection.problem or "none",
                },
            )

    async def accept_secret(self, ca: ClientCA, registration: Registration, secret: bytes) -> bytes:
        """Check the cluster and a new token, and return a renewed token, sealed."""
        return await self._connections.sealed(ca.id, await self._checked(registration, secret))

    async def maintain(self, ca: ClientCA) -> SignerAccess:
        """Renew the token of the service's account."""
        async with self._connections.opened(ca) as connection:
            return SignerAccess(connection.token.renew_at, connection.token.expires_at)

    async def delete_key(self, ca: ClientCA) -> str:
        """Delete nothing in the cluster."""
        await self._connections.forget(ca.id)
        return (
            "The service's token was deleted from the database. The service accounts and bindings of this"
            " service stay in the cluster, and these accounts' tokens work until they expire. Delete"
            " everything with `clustercert kubernetes remove`, or delete the namespaces"
            f" {USERS_NAMESPACE} and {ACCESS_NAMESPACE} with kubectl."
        )

    async def issue_token(self, order: TokenOrder) -> IssuedToken:
        """Create the service account of a credential, its token and its bindings. See `pki.signer.TokenIssuer`."""
        installation = await self._own_installation()
        async with self._connections.opened(order.cluster.client_ca) as connection:
            if connection.problem is not None:
                raise Unavailable(
                    f"This cluster gets no new credentials now: {connection.problem} {_VERIFY_ADVICE}",
                    retry_after=60,
                )
            objects = TokenObjects(
                installation, order.number, order.user_id, order.user_name, order.not_after
            )
            with explained(_FORBIDDEN_ADVICE):
                return await connection.tasks.create(connection.api, objects, order.roles, self.now())

    async def end_token(self, cluster: Cluster, number: str) -> None:
        """Delete the bindings and then the service account of a credential number, if they exist."""
        roles = {RoleGrant.parse(text) for texts in cluster.options.group_roles.values() for text in texts}
        namespaces = {role.namespace for role in roles if role.namespace}
        installation = await self._own_installation()
        async with self._connections.opened(cluster.client_ca) as connection:
            with explained(_FORBIDDEN_ADVICE):
                await delete_account(connection.api, installation, number, namespaces)

    async def call(self, ca: ClientCA, work: Callable[[KubeApi], Awaitable[T]]) -> T:
        """Run `work` with a client that has the service's account in the cluster.

        Raises SignerError, RemoteFailed, Unavailable, or any error that `work` raises.
        """
        async with self._connections.opened(ca) as connection:
            return await work(connection.api)

    async def close(self) -> None:
        """Close the connections to clusters."""
        await self._connections.close()

    async def _own_installation(self) -> str:
        if self._installation is None:
            self._installation = await self.clusters.installation()
        return self._installation

    async def _checked(self, registration: Registration, secret: bytes) -> AccountToken:
        """Check a token of the service's account and the cluster, and return a renewed token.

        Raises InvalidRequest if the cluster or the token is not fit, SignerError, RemoteFailed or Unavailable.
        """
        token = parse_token(secret)
        if token.username != ISSUER_USER:
            raise InvalidRequest(f"signer_token: this is not a token of {ISSUER_USER}. {_TOKEN_ADVICE}")
        if token.expires_at <= self.now():
            raise InvalidRequest(f"signer_token: the token has expired. {_TOKEN_ADVICE}")
        if self.look is None:
            raise SignerError("This process can't check clusters whose credentials are tokens.")
        installation = await self._own_installation()
        async with KubeApi(registration.internal_url, registration.server_ca_pem, None) as api:
            api.use_token(token.text)
            with explained(_FORBIDDEN_ADVICE):
                problem = await self.look(api, registration, installation)
                if problem is not None:
                    raise InvalidRequest(f"signer: {problem}")
                return await new_token(api, token, self.token_lifetime, self.now())


class LimitedTokenSigner(LimitedSigner):
    """Limits the creation of credentials. Ending credentials never waits for creating credentials."""

    def __init__(self, signer: TokenSigner, limits: SignerLimits) -> None:
        super().__init__(NAME, signer, limits, per_cluster=True)
        self._tokens = signer

    async def issue_token(self, order: TokenOrder) -> IssuedToken:
        """Create the service account of a credential, its token and its bindings."""
        return await self._limited(order.cluster.id, self._tokens.issue_token(order))

    async def end_token(self, cluster: Cluster, number: str) -> None:
        """Delete the bindings and then the service account of a credential number, if they exist."""
        await self._tokens.end_token(cluster, number)

    async def call(self, ca: ClientCA, work: Callable[[KubeApi], Awaitable[T]]) -> T:
        """Run `work` with a client that has the service's account in the cluster."""
        return await self._tokens.call(ca, work)


def _refuse_certificates() -> NoReturn:
    raise SignerError("This cluster's credentials are tokens of service accounts. It has no certificates.")
