"""Reads the fields of a cluster from its document, and checks them without the service."""

from typing import Any

from clustercert.cli import kubeconfig_import
from clustercert.cli.documents import Document
from clustercert.cli.options import CommandError
from clustercert.model.errors import InvalidRequest

_KUBECONFIG = ("kubeconfig", "context")


def cluster_fields(document: Document) -> dict[str, Any]:
    """Return the body for the API. Raises CommandError."""
    fields = {**document.kind.defaults, "labels": dict(document.labels)}
    fields |= {name: value for name, value in document.spec.items() if name not in _KUBECONFIG}
    if "kubeconfig" in document.spec:
        path = document.source.parent / document.spec["kubeconfig"]
        found = kubeconfig_import.read(
            path, document.spec.get("context"), need_ca="server_ca" not in fields, follow_files=False
        )
        fields.setdefault("internal_url", found.server)
        if found.ca_pem is not None:
            fields["server_ca"] = found.ca_pem.decode("ascii", "replace")
    try:
        fields["server_ca"] = _checked(document, fields)
    except InvalidRequest as error:
        raise CommandError(f"{document.source}: {document.title}: {error.message}") from error
    return fields


def _checked(document: Document, fields: dict[str, Any]) -> str:
    """Check the fields as the service does. Returns the CA without other text. Raises InvalidRequest."""
    from clustercert.clusters.registration import ClusterLimits, Registration
    from clustercert.model import ClusterOptions

    checked = Registration(
        name=document.name,
        internal_url=fields["internal_url"],
        server_ca_pem=fields["server_ca"].encode("ascii", "replace"),
        external_url=fields["external_url"],
        san_urls=tuple(fields["san_urls"]),
        version=fields["version"],
        labels=fields["labels"],
        signer=fields["signer"],
        options=ClusterOptions(
            mode=fields["webhook_mode"],
            exemptions=tuple(fields["exemptions"]),
            pins=tuple(fields["pins"]),
            pin_components=fields["pin_components"],
            listed_masters=tuple(fields["listed_masters"]),
            credential_roles=fields["credential_roles"] or None,
            admission=fields["admission"],
            unauthorized_ttl_seconds=fields["unauthorized_ttl_seconds"],
        ),
    ).checked(ClusterLimits(cas=1000))  # only the service knows its limits
    return checked.server_ca_pem.decode("ascii")
