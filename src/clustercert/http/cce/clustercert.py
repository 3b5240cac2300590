"""POST clustercert: from the bytes of the request to a kubeconfig.

| CCE's field                                  | our value                          | why                              |
| -------------------------------------------- | ---------------------------------- | -------------------------------- |
| kind, apiVersion, preferences                | Config, v1, {}                     | cce_02_0248, table 4             |
| clusters[0]                                  | internalCluster, with the CA       | otcextensions reads index 0      |
| externalCluster, if there is an EIP          | no CA, insecure-skip-tls-verify    | table 6; the names that CCE uses |
| externalCluster, `insecure_external = false` | with the CA                        | clients use these names          |
| externalClusterTLSVerify, if there is an EIP | with the CA                        | real responses have it           |
| customSAN-N                                  | one for each further address       | real responses have the contexts |
| users[0]                                     | `user`; no key if a CSR was sent   | table 7                          |
| current-context                              | `external` with an EIP, `internal` | table 4                          |

Source: CCE API reference, cce_02_0248, tables 4 to 10. `docs/cce-divergences.md` lists our differences.
"""

import functools
import json
from base64 import b64encode
from collections.abc import Iterable

import yaml
from fastapi import Request
from starlette.responses import Response

from clustercert.http import responses
from clustercert.http.accept import prefers
from clustercert.http.body import parsed, require_json
from clustercert.http.cce import bodies
from clustercert.http.cce.clusters import CLUSTER
from clustercert.http.context import context_of
from clustercert.http.dependencies import Services, authenticated, raw_body
from clustercert.model import Cluster, Issued, IssueRequest, JsonObject, rfc3339
from clustercert.model.errors import InvalidRequest, MethodNotAllowed
from clustercert.pki.keys import key_pem
from clustercert.pki.leaf import der_pem

PATH = CLUSTER + "/clustercert"
# A GET has no body with a duration. Its certificates are valid for a month, as in the vendor's API.
GET_DAYS = 30
# Bodies up to this many bytes are cached with their parsed form. Most contain only a duration.
MAX_CACHED_BODY = 64
USER = "user"

_YAML = ("application/yaml", "application/x-yaml", "text/yaml")

Shape = type[bodies.AutopilotCertRequest]


async def handle(
    request: Request, services: Services, project_id: str, cluster_id: str, shape: Shape | None
) -> Response:
    """Check the body's size, the caller and the body, then issue. `shape` is `None` for GET, which has no body."""
    raw = await raw_body(request, services)
    caller = await authenticated(request, raw, services)
    if shape is None and not services.options.get_clustercert:
        raise MethodNotAllowed("The GET form is disabled here. Use POST with a duration.", allow=["POST"])
    context = context_of(request)
    context.dry_run = _is_dry_run(request)
    context.certificate_of = (project_id, cluster_id)
    issue_request = context.issue_request = _issue_request(request, raw, shape, services.options.max_duration)
    if context.dry_run:
        preview = await services.issuance.preview(caller, project_id, cluster_id, issue_request)
        return responses.json_response(bodies.preview_body(preview))
    issued = await services.issuance.issue(caller, project_id, cluster_id, issue_request)
    context.log_fields = {
        "user": issued.grant.username,
        "cluster": issued.cluster.id,
        "fingerprint": issued.fingerprint,
    }
    document = kubeconfig(issued, insecure_external=services.options.insecure_external)
    if prefers(request, _YAML):
        return responses.Rendered(to_yaml(document), _headers(issued, b"yaml"))
    return responses.Rendered(to_json(document), _headers(issued, b"json"))


def _is_dry_run(request: Request) -> bool:
    """Whether the query has dryRun=All. Other values raise InvalidRequest, as in the Kubernetes API."""
    if not request.scope["query_string"]:
        return False
    value = request.query_params.get("dryRun")
    if value not in (None, "All"):
        raise InvalidRequest("dryRun: the only value is All.")
    return value is not None


def _issue_request(request: Request, raw: bytes, shape: Shape | None, max_days: int) -> IssueRequest:
    if shape is None:
        return IssueRequest(duration=GET_DAYS, truncate=True)
    require_json(request)
    parse = _parse_cached if len(raw) <= MAX_CACHED_BODY else _parse
    return parse(raw, shape, max_days)


def _parse(raw: bytes, shape: Shape, max_days: int) -> IssueRequest:
    return parsed(raw, shape).issue_request(max_days)


_parse_cached = functools.lru_cache(maxsize=1024)(_parse)


def _headers(issued: Issued, subtype: bytes) -> Iterable[tuple[bytes, bytes]]:
    return (
        (b"cache-control", b"no-store"),
        (b"vary", b"Accept"),
        (b"x-clustercert-serial", issued.serial.encode()),
        (b"x-clustercert-fingerprint", issued.fingerprint.encode()),
        (b"x-clustercert-not-after", rfc3339(issued.grant.not_after).encode()),
        (b"content-type", b"application/" + subtype),
    )


def kubeconfig(issued: Issued, *, insecure_external: bool) -> JsonObject:
    """Render the kubeconfig in CCE's field order. Certificates and keys are base64 of PEM."""
    entries = _entries(issued.cluster, insecure_external=insecure_external)
    return {
        "kind": "Config",
        "apiVersion": "v1",
        "preferences": {},
        "clusters": [{"name": cluster, "cluster": address} for _, cluster, address in entries],
        "users": [{"name": USER, "user": _credential(issued)}],
        "contexts": [
            {"name": context, "context": {"cluster": cluster, "user": USER}}
            for context, cluster, _ in entries
        ],
        "current-context": "external" if issued.cluster.external_url else "internal",
    }


def to_json(document: JsonObject) -> bytes:
    return json.dumps(document).encode("ascii")


def to_yaml(document: JsonObject) -> bytes:
    return yaml.safe_dump(document, sort_keys=False, default_flow_style=False, width=1_000_000).encode()


def _credential(issued: Issued) -> dict[str, str]:
    credential = {"client-certificate-data": _base64(der_pem(issued.leaf_der))}
    if issued.private_key is not None:
        credential["client-key-data"] = _base64(key_pem(issued.private_key))
    return credential


def _entries(cluster: Cluster, *, insecure_external: bool) -> list[tuple[str, str, JsonObject]]:
    """Return triples of context name, cluster name and cluster entry, in CCE's order."""
    ca_b64 = _base64(cluster.server_ca_pem)

    def verified(url: str) -> JsonObject:
        return {"server": url, "certificate-authority-data": ca_b64}

    entries = [("internal", "internalCluster", verified(cluster.internal_url))]
    if external := cluster.external_url:
        # kubectl rejects a CA together with insecure-skip-tls-verify.
        unverified: JsonObject = {"server": external, "insecure-skip-tls-verify": True}
        address = unverified if insecure_external else verified(external)
        entries.append(("external", "externalCluster", address))
        entries.append(("externalTLSVerify", "externalClusterTLSVerify", verified(external)))
    for number, url in enumerate(cluster.san_urls):
        entries.append((f"customSAN-{number}", f"customSAN-{number}", verified(url)))
    return entries


def _base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")
