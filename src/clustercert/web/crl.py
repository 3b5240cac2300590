"""Certificate revocation lists of client CAs, for everybody."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from clustercert.crl import crl_pem
from clustercert.errors import NotFound
from clustercert.web.cce import ERRORS
from clustercert.web.deps import ServicesDep

# Source: RFC 2585, 4.2. PEM has no registered type; this one is in use.
DER = "application/pkix-crl"
PEM = "application/x-pem-file"

# A list is signed and says how long it is good for; a cache's copy must not hide a revocation for long.
_CACHED = {"Cache-Control": "public, max-age=10", "Vary": "Accept"}
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}

router = APIRouter(tags=["Inventory"])


@router.get(
    "/clustercert/v1/clusters/{cluster_id}/client-cas/{ca_id}/crl",
    summary="The certificate revocation list of a client CA",
    responses={
        200: {
            "description": "RFC 5280, version 2, complete; PEM where Accept names it.",
            "content": {DER: _BINARY, PEM: {"schema": {"type": "string"}}},
        },
        **{status: ERRORS[status] for status in (404, 500, 503)},
    },
    response_class=Response,
)
async def show_crl(request: Request, cluster_id: str, ca_id: str, services: ServicesDep) -> Response:
    """What is revoked and has not ended, single certificates and whole users and clusters alike. For everybody.

    kube-apiserver reads no such list: this is for other verifiers of the same certificates.
    """
    # What is no text to PostgreSQL is no id either.
    if not (cluster_id.isprintable() and ca_id.isprintable()):
        raise NotFound("There is no such client CA. Check the cluster's id and the CA's.")
    crl = await services.crls.crl(cluster_id, ca_id)
    if PEM in ",".join(request.headers.getlist("accept")).lower():
        return Response(crl_pem(crl.der), headers=_CACHED, media_type=PEM)
    return Response(crl.der, headers=_CACHED, media_type=DER)
