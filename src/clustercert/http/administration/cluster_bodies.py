"""Bodies of the administration API for clusters."""

from typing import get_args

from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import BaseModel, Field

from clustercert.clusters.registration import Registration
from clustercert.http.administration.changes import ResourceBody
from clustercert.http.administration.directory import LABELS, Labels
from clustercert.model import Cluster, ClusterOptions, JsonObject, rfc3339
from clustercert.model.choices import MAX_TTL_SECONDS, WebhookMode
from clustercert.pki.certificates import fingerprint, pem_fingerprints

_DEFAULTS = ClusterOptions()


class ClusterRequest(ResourceBody):
    """The wanted state of a cluster."""

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


class ClusterBody(BaseModel):
    """A cluster. Times are RFC 3339."""

    id: str
    name: str
    project_id: str
    internal_url: str
    server_ca: str
    external_url: str | None
    san_urls: list[str]
    version: str
    labels: Labels
    signer: str
    webhook_mode: str = Field(json_schema_extra={"enum": list(get_args(WebhookMode))})
    exemptions: list[str]
    pins: list[str]
    pin_components: bool
    listed_masters: list[str]
    credential_roles: dict[str, str]
    admission: bool
    unauthorized_ttl_seconds: int
    server_ca_sha256: list[str] = Field(description="SHA-256 of each CA in `server_ca`, DER, lower-case hex.")
    client_ca_id: str
    client_ca: str = Field(description="The certificate for the API server's --client-ca-file, PEM.")
    client_ca_sha256: str
    client_ca_not_after: str
    created_at: str
    updated_at: str


class ClusterListBody(BaseModel):
    """A page of clusters, sorted by id."""

    clusters: list[ClusterBody]
    next: str | None = Field(description="The cursor of the next page; null on the last page.")


def cluster_view(cluster: Cluster) -> JsonObject:
    options, client_ca = cluster.options, cluster.client_ca
    return {
        "id": cluster.id,
        "name": cluster.name,
        "project_id": cluster.project_id,
        "internal_url": cluster.internal_url,
        "server_ca": cluster.server_ca_pem.decode("ascii"),
        "external_url": cluster.external_url,
        "san_urls": list(cluster.san_urls),
        "version": cluster.version,
        "labels": dict(sorted(cluster.labels.items())),
        "signer": cluster.signer,
        "webhook_mode": options.mode,
        "exemptions": list(options.exemptions),
        "pins": list(options.pins),
        "pin_components": options.pin_components,
        "listed_masters": list(options.listed_masters),
        "credential_roles": dict(sorted((options.credential_roles or {}).items())),
        "admission": options.admission,
        "unauthorized_ttl_seconds": options.unauthorized_ttl_seconds,
        "server_ca_sha256": [each.hex() for each in pem_fingerprints(cluster.server_ca_pem)],
        "client_ca_id": client_ca.id,
        "client_ca": client_ca.certificate.public_bytes(Encoding.PEM).decode("ascii"),
        "client_ca_sha256": fingerprint(client_ca.certificate).hex(),
        "client_ca_not_after": rfc3339(client_ca.certificate.not_valid_after_utc),
        "created_at": rfc3339(cluster.created_at),
        "updated_at": rfc3339(cluster.updated_at),
    }
