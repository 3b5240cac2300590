"""Route that serves the client CAs' certificate revocation lists. Needs no authentication."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from clustercert.http import openapi
from clustercert.http.dependencies import Anonymous, ServicesDep
from clustercert.model.errors import NotFound
from clustercert.pki.crl import crl_pem

# Source: RFC 2585, 4.2. PEM has no registered media type; this one is common.
DER = "application/pkix-crl"
PEM = "application/x-pem-file"

# A CRL is valid for a day, but caches must fetch it again soon: an old copy may lack new revocations.
_CACHED = {"Cache-Control": "public, max-age=10", "Vary": "Accept"}

router = APIRouter(tags=["Inventory"])


@router.get(
    "/clustercert/v1/clusters/{cluster_id}/client-cas/{ca_id}/crl",
    responses=openapi.described(
        "A complete CRL (RFC 5280, version 2) in DER, or in PEM if Accept lists it.",
        content={DER: openapi.BINARY, PEM: openapi.TEXT},
        errors={status: openapi.ERRORS[status] for status in (404, 429, 500, 503)},
    ),
    response_class=Response,
    dependencies=[Anonymous],
)
async def show_crl(request: Request, cluster_id: str, ca_id: str, services: ServicesDep) -> Response:
    """Show the certificate revocation list of a client CA.

    Lists all revoked, unexpired certificates. Needs no authentication.

    kube-apiserver does not read CRLs. They are for other services that verify the same certificates.
    """
    # Check the ids here, because PostgreSQL rejects strings with a NUL character.
    if not (cluster_id.isprintable() and ca_id.isprintable()):
        raise NotFound("There is no such client CA. Check the ids of the cluster and the CA.")
    crl = await services.crls.crl(cluster_id, ca_id)
    if PEM in ",".join(request.headers.getlist("accept")).lower():
        return Response(crl_pem(crl.der), headers=_CACHED, media_type=PEM)
    return Response(crl.der, headers=_CACHED, media_type=DER)
