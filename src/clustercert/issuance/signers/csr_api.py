"""The signer for clusters that sign with their own CA, through the Kubernetes API for certificates.

This service has no CA key. The service logs in to the cluster with a token of a service account, and renews the token.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import structlog
from cryptography import x509
from pydantic import Field

from clustercert.issuance.signers.account_connections import AccountConnections, explained
from clustercert.issuance.signers.account_tokens import AccountToken, new_token, parse_token
from clustercert.issuance.signers.certificate_requests import SHORTEST, CertificateRequests, NotSigned
from clustercert.issuance.signers.limited import LimitedSigner, SignerLimits
from clustercert.issuance.signers.signer_settings import parsed_settings
from clustercert.kube_api import ApiServerRefused, KubeApi, printable
from clustercert.model import ClientCA, Grant, SigningRequest, new_id, utc_now
from clustercert.model.choices import LeafProfile
from clustercert.model.clusters import Registration
from clustercert.model.errors import InvalidRequest, NotFound, RemoteFailed, SignerError
from clustercert.model.kubernetes import CLIENT_SIGNER, NEVER_SIGNS
from clustercert.pki.certificates import fingerprint, is_issued_by, parse_certificates
from clustercert.pki.crl import CrlContent
from clustercert.pki.envelope import SecretSealer
from clustercert.pki.keys import PARSE_ERRORS, accepted_key, key_kind, new_key
from clustercert.pki.leaf import check_leaf, new_signing_request
from clustercert.pki.signer import CaRequest, KeyCustody, SignerAccess, SignerContext, SigningClusters
from clustercert.policy.lifetime import BACKDATE, lifetime_text
from clustercert.policy.setting_types import Lifetime

logger = structlog.get_logger()

NAME = "csr_api"
# The user of the temporary certificate with which a cluster proves that it signs. The certificate has no rights.
TEST_USER = "clustercert:verify"
TEST_LIFETIME = timedelta(minutes=15)
# How long a cluster may take to sign the test request.
TEST_SECONDS = 5.0
# A request asks for a slightly shorter validity than the policy grants: the cluster counts from the time at which it
# signs, by its own clock. So the certificate never ends later than the policy allows.
MARGIN = timedelta(seconds=30)
# The number of characters of a cluster's text that an error message may contain.
MAX_SHOWN = 100

# kube-apiserver writes the content of --client-ca-file into this ConfigMap.
_BUNDLE = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication"
_BUNDLE_KEY = "client-ca-file"
# The maximum number of CAs in a cluster's bundle. The cluster's administrators write the bundle, and verifying a
# certificate with each of its CAs takes time.
MAX_BUNDLE_CAS = 64
_MAX_BUNDLE_BYTES = 256 * 1024
_FORBIDDEN, _NOT_FOUND = 403, 404
_TOKEN_ADVICE = (
    "Create a token with `kubectl create token -n clustercert clustercert-signer`, and give it with"
    " --signer-token-file."
)
_FORBIDDEN_ADVICE = (
    "The cluster forbids what the service's account asks for: the account lacks a right, or an admission policy"
    " refuses the certificate. The operator must apply the output of `clustercert kubernetes signer-access`, and read"
    " the service's log."
)
_UNTRUSTED = (
    "signer: the cluster signed the test request with a CA that its API server does not trust for clients. Correct"
    " --client-ca-file of the API server, or --cluster-signing-cert-file of kube-controller-manager."
)
_UNKNOWN_CA = (
    "signer: the CA that signed the test request is not known. Let the service's account read the ConfigMap"
    " kube-system/extension-apiserver-authentication, or add this CA to the cluster's server_ca."
)


class CsrApiSettings(SignerLimits):
    """`[signers.csr_api]`: the cluster's own CA signs, through the cluster's API for certificates.

    All limits are for each cluster. See [Let the cluster sign](csr-api.md).

    Attributes:
        token_lifetime: lifetime of the tokens with which the service logs in to clusters. The service renews a token
            after half of this time.
        concurrency: number of simultaneous requests to a cluster, per worker.
        queue: number of requests that may wait for a cluster, per worker. Further requests get status 503.
        timeout: longest time in seconds for waiting and signing together. After this time, the request gets status 503.
    """

    token_lifetime: Lifetime = Field(default=timedelta(days=7), ge=timedelta(hours=1), le=timedelta(days=90))
    concurrency: int = Field(default=8, ge=1, le=256)
    queue: int = Field(default=256, ge=1, le=100_000)
    # Must be shorter than MARGIN.
    timeout: float = Field(default=15, gt=0, le=25)


def csr_api_signer(context: SignerContext) -> LimitedSigner:
    """Build the signer. Raises ValueError for invalid settings."""
    settings = parsed_settings(CsrApiSettings, context.settings)
    if context.clusters is None:
        raise ValueError("the signer csr_api needs the service's database")
    signer = CsrApiSigner(context.clusters, context.custody, settings.token_lifetime)
    return LimitedSigner(NAME, signer, settings, per_cluster=True)


@dataclass(slots=True)
class CsrApiSigner:
    """Lets each cluster sign its own certificates.

    Attributes:
        token_lifetime: lifetime of renewed tokens.
        now: returns the current time in UTC.
    """

    clusters: SigningClusters
    custody_of_secrets: SecretSealer
    token_lifetime: timedelta
    now: Callable[[], datetime] = utc_now
    _connections: AccountConnections[CertificateRequests] = field(init=False)

    def __post_init__(self) -> None:
        self._connections = AccountConnections(
            self.clusters, self.custody_of_secrets, CertificateRequests, self.token_lifetime, self.now
        )

    @property
    def takes_serial(self) -> bool:
        """No: the cluster chooses the serial."""
        return False

    @property
    def profile(self) -> LeafProfile:
        """The encoding of leaves by kube-controller-manager."""
        return "kubernetes"

    @property
    def is_ca_of_cluster(self) -> bool:
        """Yes: the CA also signs the certificates of the cluster's components."""
        return True

    async def create_ca(self, request: CaRequest) -> ClientCA:
        """Return the cluster's own CA, which a test request reveals. The requested key type and validity are ignored.

        Without a new token, uses the token of the cluster's present CA, if this signer has such a token.
        """
        secret = request.secret or await self._connections.stored_token(request.cluster_id, NAME)
        if secret is None:
            raise InvalidRequest(
                f"signer_token: the signer csr_api needs a token of its service account. {_TOKEN_ADVICE}"
            )
        ca_id = new_id()
        certificate, token = await self._tested(request.cluster_id, request.registration, parse_token(secret))
        return ClientCA(
            id=ca_id,
            cluster_id=request.cluster_id,
            certificate=certificate,
            sealed_key=await self._connections.sealed(ca_id, token),
            signer=NAME,
            key_reference=CLIENT_SIGNER,
        )

    async def sign(self, request: SigningRequest) -> tuple[bytes, ...]:
        """Have the cluster sign a leaf."""
        if request.csr is None:
            raise SignerError("The signer csr_api was called without a CSR.")
        lifetime = request.grant.not_after - self.now() - MARGIN
        if lifetime < SHORTEST:
            allowed = request.grant.not_after - request.grant.not_before - BACKDATE
            raise InvalidRequest(
                f"The cluster signs certificates for at least {lifetime_text(SHORTEST)}, but this certificate"
                f" may last at most {lifetime_text(allowed)}. "
                + (
                    "The access request ends earlier."
                    if request.grant.access
                    else "Request at least 11 minutes. If the policy allows less, ask the operator to allow more."
                )
            )
        async with self._connections.opened(request.ca) as account:
            with explained(_FORBIDDEN_ADVICE):
                chain = await account.tasks.sign(
                    account.api, account.token, request.csr, _usages(request), lifetime
                )
                if await _signer_of(chain, (request.ca.ca_certificate,)) is None:
                    raise SignerError(await self._other_ca(account.api, chain, request.ca.ca_certificate))
                return chain

    async def sign_crl(self, _ca: ClientCA, _content: CrlContent) -> bytes:
        """Raise NotFound: only the cluster has the CA's key."""
        raise NotFound(
            "The cluster's own CA signs this cluster's certificates, so this service has no CRL for this cluster."
        )

    async def custody(self, ca: ClientCA) -> KeyCustody:
        """Return what the cluster says about the CA."""
        async with self._connections.opened(ca) as account:
            with explained(_FORBIDDEN_ADVICE):
                bundle = await _read_bundle(account.api)
            in_bundle = "unknown" if bundle is None else str(ca.certificate in bundle).lower()
            return KeyCustody(
                "the cluster's control plane; this service has no CA key, and can only ask the cluster to sign",
                {
                    "account": account.token.username,
                    "token_expires_at": f"{account.token.expires_at:%Y-%m-%dT%H:%M:%SZ}",
                    "ca_in_client_ca_file": in_bundle,
                },
            )

    async def accept_secret(self, ca: ClientCA, registration: Registration, secret: bytes) -> bytes:
        """Check a new token with a test request, and return a renewed token, sealed."""
        certificate, token = await self._tested(ca.cluster_id, registration, parse_token(secret))
        if certificate != ca.certificate:
            raise InvalidRequest(f"signer_token: {_rotated(certificate, ca.ca_certificate)}")
        return await self._connections.sealed(ca.id, token)

    async def maintain(self, ca: ClientCA) -> SignerAccess:
        """Renew the token, and delete requests that a killed process left in the cluster."""
        async with self._connections.opened(ca) as account:
            with explained(_FORBIDDEN_ADVICE):
                count = await account.tasks.delete_leftovers(account.api, account.token, self.now())
            if count:
                logger.warning(
                    "certificate requests left behind were deleted", cluster=ca.cluster_id, count=count
                )
            return SignerAccess(account.token.renew_at, account.token.expires_at)

    async def delete_key(self, ca: ClientCA) -> str:
        """Delete nothing in the cluster."""
        await self._connections.forget(ca.id)
        return (
            "The cluster keeps its own CA. The service's token was deleted from the database; to end the access at"
            " once, delete the service account clustercert-signer in the cluster."
        )

    async def close(self) -> None:
        """Close the connections to clusters."""
        await self._connections.close()

    async def _tested(
        self, cluster_id: str, registration: Registration, token: AccountToken
    ) -> tuple[x509.Certificate, AccountToken]:
        """Have the cluster sign a test request. Returns the CA that signed the test request, and a renewed token.

        Raises InvalidRequest if the cluster or the token is not fit, SignerError, RemoteFailed or Unavailable.
        """
        if token.expires_at <= self.now():
            raise InvalidRequest(f"signer_token: the token has expired. {_TOKEN_ADVICE}")
        requests = CertificateRequests(cluster_id)
        async with KubeApi(registration.internal_url, registration.server_ca_pem, None) as api:
            api.use_token(token.text)
            try:
                with explained(_FORBIDDEN_ADVICE):
                    version = str((await api.get("/version")).get("gitVersion", ""))
                    if never := next((name for part, name in NEVER_SIGNS.items() if part in version), None):
                        raise InvalidRequest(
                            f"signer: {never} ({printable(version, MAX_SHOWN)}) never signs client certificates. Use"
                            " another signer."
                        )
                    bundle = await _read_bundle(api)
                    cas = bundle or parse_certificates(registration.server_ca_pem)
                    certificate = await self._signed_test(api, token, requests, cas)
                    if certificate is None:
                        raise InvalidRequest(_UNTRUSTED if bundle else _UNKNOWN_CA)
                    return certificate, await new_token(api, token, self.token_lifetime, self.now())
            finally:
                await requests.close()

    async def _signed_test(
        self,
        api: KubeApi,
        token: AccountToken,
        requests: CertificateRequests,
        cas: tuple[x509.Certificate, ...],
    ) -> x509.Certificate | None:
        """Return the CA that signs a test request, or `None` if `cas` lacks this CA."""
        now, key = self.now().replace(microsecond=0), new_key("ec-p256")
        grant = Grant(None, TEST_USER, (), now - BACKDATE, now + TEST_LIFETIME + MARGIN)
        ca = ClientCA(id="", cluster_id=requests.cluster_id, certificate=cas[0], sealed_key=None)
        request = new_signing_request(
            grant, key.public_key(), ca, takes_serial=False, profile="kubernetes", private_key=key
        )
        try:
            chain = await requests.sign(
                api, token, request.csr or b"", _usages(request), TEST_LIFETIME, seconds=TEST_SECONDS
            )
        except NotSigned as error:
            raise RemoteFailed(
                f"The cluster did not sign a test request within {TEST_SECONDS:g} seconds. Check that the cluster's"
                f" kube-controller-manager signs for {CLIENT_SIGNER}; some managed clusters never do."
            ) from error
        signer = await _signer_of(chain, cas)
        if signer is None:
            _require_supported_key(chain, cas)
            return None
        check_leaf(chain, replace(request, ca=replace(ca, certificate=signer)))
        return signer

    async def _other_ca(self, api: KubeApi, chain: tuple[bytes, ...], ca: x509.Certificate) -> str:
        """Return a sentence about a certificate that the registered CA did not sign."""
        bundle = await _read_bundle(api) or ()
        signer = await _signer_of(chain, bundle)
        if signer is None:
            return (
                "The cluster signed with a CA that its API server does not trust for clients, or whose key has a type"
                " that is not supported. Tell the operator to check the cluster."
            )
        return _rotated(signer, ca)


def _rotated(signer: x509.Certificate, ca: x509.Certificate) -> str:
    return (
        f"The cluster now signs with the CA {_shown(signer)}, but the registered CA is {_shown(ca)}. The"
        " operator must rotate the cluster's client CA with `clustercert cluster ca rotate CLUSTER`."
    )


def _shown(ca: x509.Certificate) -> str:
    return f"{printable(ca.subject.rfc4514_string(), MAX_SHOWN)}, SHA-256 {fingerprint(ca).hex()[:16]}…"


async def _read_bundle(api: KubeApi) -> tuple[x509.Certificate, ...] | None:
    """Return the API server's client CAs, or `None` if the account may not read them."""
    try:
        data = (await api.get(_BUNDLE, max_bytes=_MAX_BUNDLE_BYTES)).get("data")
    except ApiServerRefused as refused:
        if refused.http_status in (_FORBIDDEN, _NOT_FOUND):
            return None
        raise
    pem = str(data.get(_BUNDLE_KEY, "")) if isinstance(data, dict) else ""
    try:
        return parse_certificates(pem.encode("ascii", "replace"), MAX_BUNDLE_CAS)
    except InvalidRequest as error:
        raise RemoteFailed(
            f"The cluster's list of client CAs can't be read: {error.message} Tell the operator."
        ) from error


async def _signer_of(chain: tuple[bytes, ...], cas: Sequence[x509.Certificate]) -> x509.Certificate | None:
    """Return the CA that signed a leaf, or `None`. Verifies in a thread, because the cluster's keys may be slow."""

    def found() -> x509.Certificate | None:
        try:
            leaf = x509.load_der_x509_certificate(chain[0])
        except PARSE_ERRORS:
            return None
        return next((each for each in cas if is_issued_by(leaf, each)), None)

    return await asyncio.to_thread(found)


def _require_supported_key(chain: tuple[bytes, ...], cas: Sequence[x509.Certificate]) -> None:
    """Raise InvalidRequest if a CA with the name of the leaf's issuer has a key that this service does not use."""
    issuer = x509.load_der_x509_certificate(chain[0]).issuer
    for ca in cas:
        if ca.subject == issuer:
            try:
                accepted_key(ca.public_key())
            except (InvalidRequest, *PARSE_ERRORS) as error:
                raise InvalidRequest(
                    "signer: the key of the cluster's client CA has a type that is not supported. Use another signer."
                ) from error


def _usages(request: SigningRequest) -> tuple[str, ...]:
    is_rsa = key_kind(type(request.public_key)) == "rsa"
    return ("client auth", "digital signature", *(("key encipherment",) if is_rsa else ()))
