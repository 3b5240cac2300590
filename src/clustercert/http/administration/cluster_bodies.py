"""Bodies of the administration API for clusters."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING
from typing import Annotated, Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import AliasPath, BaseModel, BeforeValidator, Field, SecretStr, create_model

from clustercert.http.administration.changes import ResourceBody
from clustercert.http.paging import PageBody
from clustercert.http.responses import Hex, ResponseBody, SortedStrings, Time
from clustercert.model.choices import CredentialKind
from clustercert.model.clusters import DeclaredProperty, cluster_properties
from clustercert.pki.certificates import fingerprint, pem_fingerprints

M = TypeVar("M", bound=BaseModel)

NO_CLIENT_CA = {409: "The cluster has no client CA: its credentials are tokens."}
"""The description of a response, for the API documentation."""

# The JSON types of properties whose values have other types in Python.
_JSON_TYPES: dict[Any, Any] = {
    bytes: str,
    tuple[str, ...]: list[str],
    Mapping[str, str]: dict[str, str],
    Mapping[str, str] | None: dict[str, str],
    Mapping[str, tuple[str, ...]]: dict[str, list[str]],
}


def _requested(each: DeclaredProperty) -> tuple[Any, Any]:
    """Return the type of a property in a request, and its description."""
    default: Any = ... if each.default is MISSING else each.default
    declared = each.declaration
    field = Field(default, description=declared.description, ge=declared.minimum, le=declared.maximum)
    return _JSON_TYPES.get(each.type, each.type), field


def _shown(each: DeclaredProperty) -> tuple[Any, Any]:
    """Return the type of a property in a response, and the path to its value."""
    of_type = _JSON_TYPES.get(each.type, each.type)
    if of_type == dict[str, str]:
        of_type = Annotated[SortedStrings, BeforeValidator(lambda value: value or {})]
    return of_type, Field(validation_alias=AliasPath(*each.path))


def _with_properties(
    field: Callable[[DeclaredProperty], tuple[Any, Any]],
) -> Callable[[type[M]], type[M]]:
    """Return a decorator that adds a field to a model for each cluster property that operators set, except the name."""

    def decorated(model: type[M]) -> type[M]:
        added: dict[str, Any] = {each.name: field(each) for each in cluster_properties()}
        return create_model(model.__name__, __base__=model, __doc__=model.__doc__, **added)

    return decorated


@_with_properties(_requested)
class ClusterRequest(ResourceBody):
    """The desired state of a cluster."""

    name: str | None = Field(
        default=None, description="A new name. By default, the cluster keeps its name. Only for operators."
    )
    signer_token: SecretStr | None = Field(
        default=None,
        description="A token of the service account with which the signer csr_api or token logs in to the cluster."
        " Never shown. Only for operators.",
    )


def _pem(certificate: x509.Certificate | None) -> str | None:
    return None if certificate is None else certificate.public_bytes(Encoding.PEM).decode("ascii")


def _fingerprint(certificate: x509.Certificate | None) -> bytes | None:
    return None if certificate is None else fingerprint(certificate)


@_with_properties(_shown)
class _Properties(ResponseBody):
    id: str
    name: str
    project_id: str


class ClusterBody(_Properties):
    """A cluster. Times are in the format of RFC 3339."""

    server_ca_sha256: Annotated[list[Hex], BeforeValidator(pem_fingerprints)] = Field(
        validation_alias="server_ca_pem",
        description="SHA-256 of the DER of each CA in `server_ca`, lower-case hex.",
    )
    client_ca_id: str = Field(validation_alias=AliasPath("client_ca", "id"))
    client_ca: Annotated[str | None, BeforeValidator(_pem)] = Field(
        validation_alias=AliasPath("client_ca", "certificate"),
        description="The certificate for the API server's --client-ca-file, PEM; null for the signer token.",
    )
    client_ca_sha256: Annotated[Hex | None, BeforeValidator(_fingerprint)] = Field(
        validation_alias=AliasPath("client_ca", "certificate")
    )
    client_ca_not_after: Time | None = Field(
        validation_alias=AliasPath("client_ca", "ends_at"),
        description="When the client CA ends; null for the signer token.",
    )
    credential: CredentialKind = Field(
        validation_alias="credential_kind", description="What users of the cluster get."
    )
    problem: str | None = Field(
        validation_alias=AliasPath("client_ca", "problem"),
        description="Why the cluster gets no tokens now, according to the last check of the cluster; null if"
        " nothing is wrong.",
    )
    signer_token_expires_at: Time | None = Field(
        validation_alias=AliasPath("client_ca", "access_expires_at"),
        description="When the token expires with which the signer csr_api or token logs in to the cluster. The service"
        " renews the token after half of its life. Null for other signers, and for at most 15 minutes after an"
        " operator gave a token.",
    )
    created_at: Time
    updated_at: Time
    verified_at: Time | None = Field(
        description="The time of the last run of `clustercert kubernetes verify` without a fault; null without"
        " such a run."
    )


class ClientCABody(ResponseBody):
    """A cluster's client CA, and where its key is. Times are in the format of RFC 3339."""

    id: str
    cluster_id: str
    signer: str = Field(description="The signer that has the key.")
    subject: str = Field(description="The CA's name, in the format of RFC 4514.")
    sha256: Hex = Field(description="SHA-256 of the DER of the CA's certificate, lower-case hex.")
    certificate: Annotated[str | None, BeforeValidator(_pem)] = Field(
        description="The certificate for the API server's --client-ca-file, PEM."
    )
    not_before: Time = Field(validation_alias=AliasPath("certificate", "not_valid_before_utc"))
    not_after: Time
    key_location: str = Field(description="The present place of the key, which the signer has just read.")
    key_properties: dict[str, str] = Field(description="Properties of the key at that place, by name.")
    access_policy: str | None = Field(
        description="The policy that the service's account needs at that place; null if there is none."
    )


class ClusterListBody(PageBody):
    """A page of clusters, sorted by id."""

    clusters: list[ClusterBody]


class KeyDeletionBody(ResponseBody):
    """What happened to the key of a client CA that is not needed any more."""

    client_ca_id: str = Field(validation_alias="ca_id")
    signer: str
    deleted: bool = Field(
        validation_alias="is_done", description="False if the deletion failed. The service tries again."
    )
    result: str


class KeyDeletionsBody(BaseModel):
    """What happened to the keys of the client CAs of a removed cluster."""

    keys: list[KeyDeletionBody] = Field(description="Empty in the answer to a dry run.")
