"""Bodies of the administration API for clusters."""

from typing import Annotated, get_args

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import AliasPath, BeforeValidator, Field

from clustercert.clusters.registration import Registration
from clustercert.http.administration.changes import ResourceBody
from clustercert.http.administration.directory import LABELS, Labels
from clustercert.http.paging import PageBody
from clustercert.http.responses import Hex, ResponseBody, SortedStrings, Time
from clustercert.model import ClusterOptions
from clustercert.model.choices import MAX_TTL_SECONDS, WebhookMode
from clustercert.pki.certificates import fingerprint, pem_fingerprints

_DEFAULTS = ClusterOptions()


class ClusterRequest(ResourceBody):
    """The desired state of a cluster."""

    name: str | None = Field(
        default=None, description="A new name; by default, it keeps its name. Only for operators."
    )
    internal_url: str = Field(description="Address of the API server in its network: https://host:port.")
    server_ca: str = Field(description="CA of the API server's certificate, PEM.")
    external_url: str | None = Field(default=None, description="Public address of the API server.")
    san_urls: list[str] = Field(default=[], description="Further addresses in the API server's certificate.")
    version: str = Field(default="", description="Kubernetes version, such as v1.32, for display.")
    labels: Labels = Field(default={}, description=f"{LABELS} Only for operators.")
    signer: str = Field(default="local", description="Signer of its certificates. Can't be changed later.")
    webhook_mode: WebhookMode = Field(
        default=_DEFAULTS.mode,
        description="Webhook's response for certificates from other issuers: no opinion (default), or denied.",
    )
    exemptions: list[str] = Field(
        default=list(_DEFAULTS.exemptions), description="Users and groups exempt from known-only."
    )
    pins: list[str] = Field(
        default=[], description="Fingerprints of certificates with exempt names, which raise no alert."
    )
    pin_components: bool = Field(
        default=_DEFAULTS.pin_components,
        description="Whether known-only denies certificates with exempt names that are not in pins.",
    )
    listed_masters: list[str] = Field(
        default=[], description="Fingerprints of certificates in system:masters that raise no alert."
    )
    credential_roles: dict[str, str] = Field(
        default={},
        description="The ClusterRole that each certificate is bound to, by rule of the policy. Only for operators.",
    )
    admission: bool = Field(
        default=False, description="Keep the ids of revoked certificates in the cluster. Only for operators."
    )
    unauthorized_ttl_seconds: int = Field(
        default=_DEFAULTS.unauthorized_ttl_seconds,
        ge=1,
        le=MAX_TTL_SECONDS,
        description="How long the API server caches the webhook's denials. Later uses of revoked certificates are"
        " reported.",
    )

    def registration(self, name: str, before: ClusterOptions | None) -> Registration:
        """Return the registration. `before` has the current options, if there is a cluster."""
        # Empty, not `None`, if there were roles, so that the bindings of earlier certificates are still removed.
        had_roles = before is not None and before.credential_roles is not None
        roles = self.credential_roles if self.credential_roles or had_roles else None
        return Registration(
            name=self.name if self.name is not None else name,
            internal_url=self.internal_url,
            server_ca_pem=self.server_ca.encode("ascii", "replace"),
            external_url=self.external_url,
            san_urls=tuple(self.san_urls),
            version=self.version,
            labels=self.labels,
            signer=self.signer,
            options=ClusterOptions(
                mode=self.webhook_mode,
                exemptions=tuple(dict.fromkeys(self.exemptions)),
                pins=tuple(dict.fromkeys(self.pins)),
                pin_components=self.pin_components,
                listed_masters=tuple(dict.fromkeys(self.listed_masters)),
                credential_roles=roles,
                admission=self.admission,
                unauthorized_ttl_seconds=self.unauthorized_ttl_seconds,
            ),
        )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode("ascii")


class ClusterBody(ResponseBody):
    """A cluster. Times are RFC 3339."""

    id: str
    name: str
    project_id: str
    internal_url: str
    server_ca: str = Field(validation_alias="server_ca_pem")
    external_url: str | None
    san_urls: list[str]
    version: str
    labels: SortedStrings
    signer: str
    webhook_mode: str = Field(
        validation_alias=AliasPath("options", "mode"),
        json_schema_extra={"enum": list(get_args(WebhookMode))},
    )
    exemptions: list[str] = Field(validation_alias=AliasPath("options", "exemptions"))
    pins: list[str] = Field(validation_alias=AliasPath("options", "pins"))
    pin_components: bool = Field(validation_alias=AliasPath("options", "pin_components"))
    listed_masters: list[str] = Field(validation_alias=AliasPath("options", "listed_masters"))
    credential_roles: Annotated[SortedStrings, BeforeValidator(lambda roles: roles or {})] = Field(
        validation_alias=AliasPath("options", "credential_roles")
    )
    admission: bool = Field(validation_alias=AliasPath("options", "admission"))
    unauthorized_ttl_seconds: int = Field(validation_alias=AliasPath("options", "unauthorized_ttl_seconds"))
    server_ca_sha256: Annotated[list[Hex], BeforeValidator(pem_fingerprints)] = Field(
        validation_alias="server_ca_pem",
        description="SHA-256 of each CA in `server_ca`, DER, lower-case hex.",
    )
    client_ca_id: str = Field(validation_alias=AliasPath("client_ca", "id"))
    client_ca: Annotated[str, BeforeValidator(_pem)] = Field(
        validation_alias=AliasPath("client_ca", "certificate"),
        description="The certificate for the API server's --client-ca-file, PEM.",
    )
    client_ca_sha256: Annotated[Hex, BeforeValidator(fingerprint)] = Field(
        validation_alias=AliasPath("client_ca", "certificate")
    )
    client_ca_not_after: Time = Field(
        validation_alias=AliasPath("client_ca", "certificate", "not_valid_after_utc")
    )
    created_at: Time
    updated_at: Time


class ClusterListBody(PageBody):
    """A page of clusters, sorted by id."""

    clusters: list[ClusterBody]
