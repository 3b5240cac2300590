"""Registered clusters and their client CAs.

Each property that operators set is declared here once, with its name and description in the API. The API's request and
response bodies and the documents for `clustercert apply` are generated from the declarations.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_args, get_type_hints

from clustercert.model.choices import MAX_TTL_SECONDS, CaState, CredentialKind, WebhookMode
from clustercert.model.errors import Conflict
from clustercert.model.kubernetes import NODES, TOKEN_SIGNER

if TYPE_CHECKING:
    # The command line imports this module at start-up, and these imports are slow.
    from cryptography import x509

    from clustercert.model.identity import ProjectName

_NO_CA = "This cluster has no client CA: its credentials are tokens of service accounts."
NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ClientCA:
    """The CA that signs one cluster's client certificates. The API server's `--client-ca-file` contains this CA.

    A cluster whose credentials are tokens has no CA. Its `ClientCA` only holds the token of this service's own account.

    Attributes:
        id: 32 hex digits.
        certificate: the CA certificate; None for the signer `token`.
        sealed_key: the secret that the signer stores for this CA, sealed, see `pki.envelope`. For the signer `local`,
            the private key (PKCS#8 DER). None if the signer stores no secret here.
        signer: the name of the signer that has the private key: its entry point.
        key_reference: where the signer keeps the key, in the signer's own form; None if the database has the key.
        state: only the CA in the state `active` signs certificates for users; see `choices.CaState`.
        not_after: when the CA certificate expires; `NEVER` for the signer `token`.
        problem: why the cluster gets no tokens now, as the last look at the cluster found; None if nothing is wrong.
        access_expires_at: when the token expires with which the signer logs in to the cluster, as known since the last
            renewal; None if this is not known, or if the signer has no such token.
    """

    id: str
    cluster_id: str
    certificate: "x509.Certificate | None"
    sealed_key: bytes | None
    state: CaState = "active"
    signer: str = "local"
    key_reference: str | None = None
    problem: str | None = field(default=None, compare=False)
    access_expires_at: datetime | None = field(default=None, compare=False)
    not_after: datetime = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ca = self.certificate
        object.__setattr__(self, "not_after", NEVER if ca is None else ca.not_valid_after_utc)

    @property
    def ends_at(self) -> datetime | None:
        """When the CA certificate expires; None for the signer `token`."""
        return None if self.certificate is None else self.not_after

    def require_certificate(self) -> None:
        """Raise Conflict for the signer `token`."""
        if self.certificate is None:
            raise Conflict(_NO_CA)

    @property
    def ca_certificate(self) -> "x509.Certificate":
        """The CA certificate. Raises Conflict for the signer `token`."""
        if self.certificate is None:
            raise Conflict(_NO_CA)
        return self.certificate


@dataclass(frozen=True, slots=True)
class Property:
    """Declares a property of a cluster that operators set.

    Attributes:
        description: the description in the API reference.
        name: the name in the API, if it differs from the attribute's name.
        minimum, maximum: the limits of a number.
    """

    description: str
    name: str = ""
    minimum: int | None = None
    maximum: int | None = None


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """How a cluster enforces revocations, and how the cluster treats unknown certificates.

    Attributes:
        mode: how the webhook treats certificates that are not in the ledger.
        exemptions: names or prefixes of users and groups; a final asterisk is a wildcard.
        pins, listed_masters: fingerprints (SHA-256, lower-case hex) of certificates that the operator has confirmed, so
            that they raise no alert.
        credential_roles: maps names of policy rules to ClusterRoles. None if no certificate ever had its own role
            binding; empty if only older certificates have role bindings.
        discover_api_servers: whether a new client CA is proved at the addresses that the cluster itself names.
        admission: whether to keep the ids of revoked certificates in the cluster, where a ValidatingAdmissionPolicy
            reads them.
        group_roles: maps the policy's groups to roles in the cluster, as `group_roles.RoleGrant` writes them. Only for
            clusters whose credentials are tokens.
        allow_cluster_admin: whether `group_roles` may have the ClusterRole cluster-admin for the whole cluster.
    """

    mode: Annotated[
        WebhookMode,
        Property(
            "Webhook's response for certificates from other issuers: no opinion (default), or denied.",
            name="webhook_mode",
        ),
    ] = "default"
    exemptions: Annotated[tuple[str, ...], Property("Users and groups exempt from the mode known-only.")] = (
        NODES,
    )
    pins: Annotated[
        tuple[str, ...],
        Property("Fingerprints of certificates with exempt names, which raise no alert."),
    ] = ()
    pin_components: Annotated[
        bool,
        Property(
            "Whether the mode known-only denies certificates with exempt names if pins lacks their fingerprints."
        ),
    ] = False
    listed_masters: Annotated[
        tuple[str, ...], Property("Fingerprints of certificates in system:masters that raise no alert.")
    ] = ()
    credential_roles: Annotated[
        Mapping[str, str] | None,
        Property(
            "Maps names of policy rules to the ClusterRole to which each certificate of the rule is bound. Only for"
            " operators."
        ),
    ] = None
    discover_api_servers: Annotated[
        bool,
        Property(
            "Whether a new client CA is proved at the addresses in the cluster's EndpointSlices, if api_servers is"
            " empty. Needs admission or credential_roles. Only for operators."
        ),
    ] = False
    admission: Annotated[
        bool,
        Property("Keep the ids of revoked certificates in the cluster. Only for operators."),
    ] = False
    group_roles: Annotated[
        Mapping[str, tuple[str, ...]],
        Property(
            "For clusters whose credentials are tokens: maps the policy's groups to lists of roles, such as"
            " clusterrole/view, clusterrole/edit@NAMESPACE or role/NAME@NAMESPACE. Only for operators."
        ),
    ] = field(default_factory=dict)
    allow_cluster_admin: Annotated[
        bool,
        Property("Whether group_roles may have clusterrole/cluster-admin. Only for operators."),
    ] = False
    unauthorized_ttl_seconds: Annotated[
        int,
        Property(
            "How long the API server caches the webhook's denials. A use of a revoked certificate is"
            " reported if the use happens more than this time after the revocation.",
            minimum=1,
            maximum=MAX_TTL_SECONDS,
        ),
    ] = 2


@dataclass(frozen=True, slots=True)
class Registration:
    """The properties of a cluster that an operator sets.

    Attributes:
        external_url: the public address of the API server; in CCE, the elastic IP address (EIP).
        san_urls: further addresses for which the API server's certificate is valid.
        api_servers: the address of each API server of a cluster that has several. A new client CA is proved at each of
            these addresses before it signs. If empty, the CA is proved at `internal_url`; see also
            `ClusterOptions.discover_api_servers`.
        server_ca_pem: one or more PEM blocks.
        signer: the name of the signer's entry point.
        version: the Kubernetes version; empty if it is not known.
    """

    name: str
    internal_url: Annotated[str, Property("Address of the API server in its network: https://host:port.")]
    server_ca_pem: Annotated[bytes, Property("CA of the API server's certificate, PEM.", name="server_ca")]
    external_url: Annotated[str | None, Property("Public address of the API server.")] = None
    san_urls: Annotated[tuple[str, ...], Property("Further addresses in the API server's certificate.")] = ()
    api_servers: Annotated[
        tuple[str, ...],
        Property(
            "The address of each API server, where a new client CA is proved before it signs. Only for operators."
        ),
    ] = ()
    version: Annotated[str, Property("Kubernetes version, such as v1.32, for display.")] = ""
    labels: Annotated[Mapping[str, str], Property("Labels, as in Kubernetes. Only for operators.")] = field(
        default_factory=dict
    )
    signer: Annotated[
        str, Property("Signer of the cluster's certificates. Changes only with a rotation of the client CA.")
    ] = "local"
    options: ClusterOptions = field(default_factory=ClusterOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster(Registration):
    """A registered Kubernetes cluster.

    Attributes:
        id: a UUID.
        client_ca: the active client CA.
        project_name: the project's name; None if the name is not known, as in old events.
        verified_at: the last time when `clustercert kubernetes verify` found no fault; None if there is no such time.
    """

    id: str
    project_id: str
    created_at: datetime
    updated_at: datetime
    client_ca: ClientCA
    project_name: "ProjectName | None" = field(default=None, compare=False)
    verified_at: datetime | None = field(default=None, compare=False)

    @property
    def credential_kind(self) -> CredentialKind:
        """What users of the cluster get: certificates, or tokens of service accounts."""
        return credential_kind(self.signer)

    @property
    def shown_name(self) -> str:
        """`DOMAIN/PROJECT/CLUSTER`, or only the cluster's name if the project's name is not known."""
        project = self.project_name
        return self.name if project is None else f"{project.domain.name}/{project.name}/{self.name}"


def credential_kind(signer: str) -> CredentialKind:
    """Return what users of a cluster with this signer get."""
    return "token" if signer == TOKEN_SIGNER else "certificate"


class DeclaredProperty(NamedTuple):
    """A property of a cluster in the API.

    Attributes:
        path: the names of the attributes on the path from a `Registration` to the value.
        type: the type of the attribute.
        default: the default as a JSON value, or `MISSING`.
    """

    name: str
    path: tuple[str, ...]
    type: Any
    default: object
    declaration: Property


@cache
def cluster_properties() -> tuple[DeclaredProperty, ...]:
    """Return the properties that operators set, except the name, in the order of the API."""
    return (*_declared(Registration), *_declared(ClusterOptions, "options"))


def _declared(owner: type[Registration | ClusterOptions], *path: str) -> Iterator[DeclaredProperty]:
    hints = get_type_hints(owner, include_extras=True)
    for each in fields(owner):
        for declaration in getattr(hints[each.name], "__metadata__", ()):
            of_type, *_ = get_args(hints[each.name])
            default = each.default if each.default_factory is MISSING else each.default_factory()
            if isinstance(default, tuple):
                default = list(default)
            elif default is None and of_type == Mapping[str, str] | None:
                default = {}
            yield DeclaredProperty(
                declaration.name or each.name, (*path, each.name), of_type, default, declaration
            )
