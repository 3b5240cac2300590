"""Routes for the client CAs of a cluster and for their rotation.

Only operators rotate client CAs: the service connects to the cluster's API servers, and every holder of a certificate
depends on the result. Project admins can read everything.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Annotated, Literal, get_args

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from fastapi import APIRouter, Query
from pydantic import AliasPath, BaseModel, BeforeValidator, Field
from starlette.responses import Response

from clustercert.clusters.ca_rotation import ReportedResult, RotationOptions
from clustercert.http import IN_PROJECT, OWN, responses
from clustercert.http.administration import changes
from clustercert.http.administration.changes import AdminCall, OperatorChange, ResourceBody
from clustercert.http.administration.cluster_bodies import NO_CLIENT_CA, KeyDeletionBody
from clustercert.http.administration.clusters import CLUSTER, deleted_keys
from clustercert.http.certificates import ACTOR_NAME, known_users, name_of
from clustercert.http.dependencies import Call, CallDep
from clustercert.http.openapi import ERRORS, KIB, TEXT, described, json_body
from clustercert.http.paging import KeyPageDep, PageBody, ReadPage, keyset_page
from clustercert.http.responses import Hex, ResponseBody, Time
from clustercert.model import JsonObject
from clustercert.model.ca_rotation import CaProof, RotationStatus
from clustercert.model.choices import CaState, ProofOutcome, RotationState
from clustercert.model.errors import InvalidRequest
from clustercert.model.rights import require_reader
from clustercert.pki.certificates import MAX_CSR_BYTES, chain_pem, csr_public_key, fingerprint
from clustercert.pki.leaf import der_pem
from clustercert.store.clusters.ca_rotations import RUNNING

CAS = CLUSTER + "/client-cas"
ROTATION = CLUSTER + "/client-ca-rotation"
PEM = "application/x-pem-file"
MAX_RESULTS = 128


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode("ascii")


class ClientCaBody(ResponseBody):
    """A client CA. Times are in the format of RFC 3339."""

    id: str
    state: CaState = Field(
        description="The `active` CA signs. The `next` CA will sign, and the `retiring` CA signed before; API"
        " servers trust both. The key of a `retired` CA is deleted."
    )
    signer: str = Field(description="The signer that has the key.")
    sha256: Annotated[Hex, BeforeValidator(fingerprint)] = Field(validation_alias="certificate")
    not_after: Time
    certificate: Annotated[str, BeforeValidator(_pem)] = Field(description="PEM.")


class ClientCaListBody(BaseModel):
    """The client CAs of a cluster, oldest first."""

    client_cas: list[ClientCaBody]


class ApiServerBody(BaseModel):
    """How an API server treats the two CAs, as last seen; null before the first attempt."""

    address: str
    new_ca: ProofOutcome | None
    new_ca_at: Time | None
    old_ca: ProofOutcome | None = Field(
        description="Null until an operator has requested the completion, because the old CA is not tried"
        " before the request."
    )
    old_ca_at: Time | None
    by: str | None = Field(description="Who made the last attempt: a user's id, or the service itself.")
    detail: str = Field(description="Why the last attempt proved nothing; empty otherwise.")


class HoldersBody(ResponseBody):
    """Valid certificates of a CA, except the service's own."""

    certificates: int
    used_last_hour: int = Field(
        description="How many of these certificates an API server reported within the last hour."
    )
    until: Time | None = Field(
        description="When the last of these certificates expires; null if there are none."
    )


class HolderBody(ResponseBody):
    """A user with valid certificates of the old CA."""

    user_id: str
    user_name: str
    certificates: int
    until: Time
    last_seen_at: Time | None = Field(
        description="When an API server last reported the use of one of these certificates; null without a report."
    )


def _rotation(name: str) -> AliasPath:
    return AliasPath("rotation", name)


class RotationBody(ResponseBody):
    """The rotation of a cluster's client CA. Times are in the format of RFC 3339."""

    id: str = Field(validation_alias=AliasPath("cluster", "id"), description="The cluster's id.")
    cluster: str = Field(validation_alias=AliasPath("cluster", "name"))
    project_id: str = Field(validation_alias=AliasPath("cluster", "project_id"))
    state: RotationState = Field(
        validation_alias=_rotation("state"),
        description="`planned`: the new CA is in the bundle. `distributed`: every API server accepts the new"
        " CA. `issuing`: the new CA signs. `draining`: no certificate of the old CA can be issued any"
        " more. `complete`: every API server"
        " refuses the old CA. `aborted`: the old CA signs as before.",
    )
    since: Time = Field(validation_alias=_rotation("since"), description="When the state began.")
    started_at: Time = Field(validation_alias=_rotation("started_at"))
    started_by: str = Field(validation_alias=_rotation("started_by"))
    started_by_name: str | None = Field(description=ACTOR_NAME)
    auto_complete: bool = Field(validation_alias=_rotation("auto_complete"))
    deny_old: bool = Field(validation_alias=_rotation("deny_old"))
    reverses: bool = Field(
        validation_alias=_rotation("reverses"),
        description="Whether the rotation goes back to the previous CA, because somebody aborted the"
        " rotation after `issuing` began.",
    )
    completion_asked_at: Time | None = Field(validation_alias=_rotation("completion_asked_at"))
    forced: bool = Field(
        validation_alias=_rotation("forced"),
        description="Whether an operator requested the completion while certificates of the old CA were valid.",
    )
    old_ca: ClientCaBody
    new_ca: ClientCaBody
    api_servers: list[ApiServerBody]
    old_ca_holders: HoldersBody = Field(validation_alias="old")
    new_ca_holders: HoldersBody = Field(validation_alias="new")
    safe_at: Time | None = Field(
        description="From this time on, nobody loses access if the rotation is completed; null before `draining`."
    )
    problem: str | None = Field(
        validation_alias=_rotation("problem"),
        description="Why the last attempt to advance the rotation failed; null if it did not fail.",
    )
    problem_at: Time | None = Field(validation_alias=_rotation("problem_at"))
    next_step: str = Field(description="What the operator has to do now.")
    next_commands: list[str] = Field(description="The commands in `next_step`, in their order.")


class RotationListBody(PageBody):
    """A page of rotations, sorted by the cluster's id."""

    rotations: list[RotationBody]


class WholeRotationBody(RotationBody):
    """The rotation of a cluster's client CA, with the holders of the old CA."""

    holders: list[HolderBody] = Field(
        description="Users with valid certificates of the old CA, latest expiry first; at most 200."
    )


class AbortedRotationBody(WholeRotationBody):
    """A rotation after an abort."""

    keys: list[KeyDeletionBody] = Field(description="The keys that the abort made superfluous.")


class RotationRequest(ResourceBody):
    """How to rotate the client CA."""

    signer: str | None = Field(
        default=None, description="The signer that creates the new CA. By default, the cluster's signer."
    )
    secret: str | None = Field(
        default=None, description="The credential for this cluster, if the signer needs one."
    )
    auto_complete: bool = Field(
        default=False,
        description="Remove the old CA from the bundle as soon as none of its certificates is valid.",
    )
    deny_old: bool = Field(
        default=False,
        description="Let the webhook deny certificates of the old CA after an operator requests the completion.",
    )


class CompletionRequest(ResourceBody):
    """How to complete a rotation."""

    force: bool = Field(
        default=False,
        description="Complete the rotation even if certificates of the old CA are valid. Needs `holders`.",
    )
    holders: int | None = Field(
        default=None,
        ge=0,
        description="The exact number of valid certificates of the old CA, `old_ca_holders.certificates`.",
    )
    deny_old: bool | None = Field(
        default=None,
        description="Let the webhook deny certificates of the old CA from now on. By default, as requested"
        " at the start of the rotation.",
    )


class ProofRequest(ResourceBody):
    """A request for temporary certificates."""

    csr: str = Field(
        max_length=MAX_CSR_BYTES,
        description="A certificate signing request, PEM. Only the key in the request is used.",
    )


class ProofCertificateBody(BaseModel):
    """A temporary certificate of a client CA."""

    client_ca_id: str
    expected: Literal["accepted", "refused"] = Field(
        description="How every API server must treat the certificate."
    )
    certificate: str = Field(description="PEM.")
    not_after: Time


class ProofCertificatesBody(BaseModel):
    """Temporary certificates, and the API servers at which to try them."""

    certificates: list[ProofCertificateBody]
    addresses: list[str]
    server_ca: str = Field(description="The CA of the API servers' certificates, PEM.")


class ProofResultRequest(ResourceBody):
    """How an API server treated a temporary certificate."""

    client_ca_id: str
    address: str
    outcome: ProofOutcome = Field(
        description="`accepted`: the API server named the certificate's user. `refused`: status 401. `failed`:"
        " anything else, such as no answer."
    )
    detail: str = Field(default="", max_length=300, description="Why the attempt failed.")


class ProofResultsRequest(ResourceBody):
    """What somebody has found out about the API servers."""

    results: list[ProofResultRequest] = Field(min_length=1, max_length=MAX_RESULTS)


router = APIRouter(tags=["Administration"])

States = Annotated[
    Literal["running", RotationState] | None,
    Query(description="Only rotations in this state, or all running rotations. By default, all rotations."),
]


@router.get(CAS, responses=described("The client CAs.", ClientCaListBody))
async def list_cas(call: AdminCall, project_id: str, cluster: str) -> Response:
    """List the client CAs of a cluster, including retired CAs. Only for project admins and operators.

    The list is empty if the cluster's credentials are tokens.
    """
    owner = await call.services.clusters.find(project_id, cluster)
    found = await call.services.ca_rotations.cas.of_cluster(owner.id)
    with_certificate = [each for each in found if each.certificate is not None]
    return responses.private({"client_cas": [ClientCaBody.render(each) for each in with_certificate]})


@router.get(
    CAS + "/bundle",
    responses=described("The CA certificates.", content={PEM: TEXT}, errors=ERRORS | NO_CLIENT_CA),
    response_class=Response,
)
async def show_bundle(call: AdminCall, project_id: str, cluster: str) -> Response:
    """Show the client CAs that the cluster's API servers must trust, in PEM, oldest first.

    During a rotation, the bundle has both CAs until an operator requests the completion, and afterwards only the new
    CA. Only for project admins and operators. The status is 409 if the cluster's credentials are tokens.
    """
    owner = await call.services.clusters.find(project_id, cluster)
    owner.client_ca.require_certificate()
    bundle = await call.services.clusters.queries.bundle(owner.id)
    return Response(chain_pem(bundle), headers=responses.NO_STORE, media_type=PEM)


@router.get(OWN + "/client-ca-rotations", responses=described("The rotations.", RotationListBody))
async def list_rotations(call: CallDep, page: KeyPageDep, state: States = None) -> Response:
    """List the rotations of all clusters: of each, the running one or else the last. For operators and auditors."""
    require_reader(call.caller)
    read = _reading(call, states=_states(state))
    return responses.private(await keyset_page("rotations", read, _body, page))


@router.get(IN_PROJECT + "/client-ca-rotations", responses=described("The rotations.", RotationListBody))
async def list_rotations_of_project(
    call: AdminCall, project_id: str, page: KeyPageDep, state: States = None
) -> Response:
    """List the rotations of a project's clusters. Only for project admins and operators."""
    read = _reading(call, project_id=project_id, states=_states(state))
    return responses.private(await keyset_page("rotations", read, _body, page))


@router.get(ROTATION, responses=changes.one(WholeRotationBody, NO_CLIENT_CA))
async def show_rotation(call: AdminCall, project_id: str, cluster: str) -> Response:
    """Show the running rotation of a cluster's client CA, or the last one if none is running.

    Only for project admins and operators.
    """
    owner = await call.services.clusters.find(project_id, cluster)
    return changes.shown(await _whole_body(call, await call.services.ca_rotations.status(owner)))


@router.post(
    ROTATION,
    status_code=201,
    responses=changes.created(WholeRotationBody),
    openapi_extra=json_body(RotationRequest, limit=24 * KIB, required=False),
)
async def start_rotation(change: OperatorChange, project_id: str, cluster: str) -> Response:
    """Create a new client CA, and start the rotation to this CA. Only for operators.

    The new CA signs once every API server is proved to accept this CA. A dry run shows who holds certificates of the
    old CA. The signer in the request also creates the cluster's later CAs.
    """
    change.check(None)
    sent = change.optional_body(RotationRequest)
    owner = await change.call.services.clusters.find(project_id, cluster)
    secret = sent.secret.encode() if sent.secret is not None else None
    options = RotationOptions(sent.signer, secret, sent.auto_complete, sent.deny_old)
    with change.transactions():
        status = await change.call.services.ca_rotations.start(
            owner, options, actor=change.call.caller.actor, planned=change.dry_run
        )
    return responses.json_response(await _whole_body(change.call, status), 201, responses.NO_STORE)


@router.post(
    ROTATION + "/complete",
    responses=changes.changed(WholeRotationBody),
    openapi_extra=json_body(CompletionRequest, limit=KIB, required=False),
)
async def complete_rotation(change: OperatorChange, project_id: str, cluster: str) -> Response:
    """Remove the old CA from the bundle. Only for operators.

    The rotation is complete once every API server is proved to refuse the old CA. Repeating the request changes
    nothing. While certificates of the old CA are valid, the request needs `force` and the exact number of these
    certificates.
    """
    sent = change.optional_body(CompletionRequest)
    if sent.force != (sent.holders is not None):
        raise InvalidRequest(
            "force, holders: send both fields, or neither. `holders` is the number of valid certificates of"
            " the old CA."
        )
    owner = await change.call.services.clusters.find(project_id, cluster)
    rotations = change.call.services.ca_rotations
    change.check(await _whole_body(change.call, await rotations.status(owner)))
    with change.transactions():
        status = await rotations.complete(
            owner, holders=sent.holders, deny_old=sent.deny_old, actor=change.call.caller.actor
        )
    return responses.private(await _whole_body(change.call, status))


@router.post(ROTATION + "/abort", responses=changes.changed(AbortedRotationBody))
async def abort_rotation(change: OperatorChange, project_id: str, cluster: str) -> Response:
    """Abort the running rotation. The request has no body. Only for operators.

    Before `issuing`, the rotation ends, and the key of the new CA is deleted. Afterwards, the rotation goes back to the
    previous CA, which signs again as soon as every API server is proved to accept this CA.
    """
    change.require_no_body()
    owner = await change.call.services.clusters.find(project_id, cluster)
    rotations = change.call.services.ca_rotations
    change.check(await _whole_body(change.call, await rotations.status(owner)))
    with change.transactions():
        status = await rotations.abort(owner, actor=change.call.caller.actor)
    return responses.private(await _whole_body(change.call, status) | await deleted_keys(change, owner.id))


@router.post(
    ROTATION + "/certificates",
    status_code=201,
    responses=changes.created(ProofCertificatesBody),
    openapi_extra=json_body(ProofRequest, limit=20 * KIB),
)
async def create_certificates(change: OperatorChange, project_id: str, cluster: str) -> Response:
    """Issue temporary certificates, to prove which CAs the API servers accept. Only for operators.

    The certificates have no groups. Request /apis/authentication.k8s.io/v1/selfsubjectreviews with each certificate at
    each address, and report the results. A dry run issues nothing.
    """
    sent = change.body(ProofRequest, None)
    owner = await change.call.services.clusters.find(project_id, cluster)
    rotations, key = change.call.services.ca_rotations, csr_public_key(sent.csr)
    status = await rotations.status(owner)
    issued = (
        ()
        if change.dry_run
        else await rotations.temporary_certificates(owner, key, actor=change.call.caller.actor)
    )
    body = ProofCertificatesBody(
        certificates=[
            ProofCertificateBody(
                client_ca_id=ca.id,
                expected="accepted" if ca.id == status.rotation.new_ca_id else "refused",
                certificate=der_pem(each.leaf_der).decode("ascii"),
                not_after=each.grant.not_after,  # type: ignore[arg-type] # the validator converts it
            )
            for ca, each in issued
        ],
        addresses=list(await rotations.addresses(owner, status.rotation)),
        server_ca=owner.server_ca_pem.decode("ascii"),
    )
    return responses.json_response(body.model_dump(), 201, responses.NO_STORE)


@router.post(
    ROTATION + "/proofs",
    responses=changes.changed(WholeRotationBody),
    openapi_extra=json_body(ProofResultsRequest, limit=128 * KIB),
)
async def report_proofs(change: OperatorChange, project_id: str, cluster: str) -> Response:
    """Report how API servers treated the temporary certificates. Only for operators.

    The service counts these results for 10 minutes, like its own results, and records who reported the results.
    """
    sent = change.body(ProofResultsRequest, None)
    owner = await change.call.services.clusters.find(project_id, cluster)
    results = [
        ReportedResult(each.client_ca_id, each.address, each.outcome, each.detail) for each in sent.results
    ]
    with change.transactions():
        status = await change.call.services.ca_rotations.report(
            owner, results, actor=change.call.caller.actor
        )
    return responses.private(await _whole_body(change.call, status))


def _states(state: str | None) -> Collection[RotationState] | None:
    if state is None:
        return None
    return RUNNING if state == "running" else [each for each in get_args(RotationState) if each == state]


def _body(status: RotationStatus) -> JsonObject:
    return RotationBody.render(status, api_servers=_api_servers(status))


async def _whole_body(call: Call, status: RotationStatus) -> JsonObject:
    [named] = await _with_names(call, [status])
    return WholeRotationBody.render(named, api_servers=_api_servers(named))


async def _with_names(call: Call, found: Sequence[RotationStatus]) -> Sequence[RotationStatus]:
    users = await known_users(call, (each.rotation.started_by for each in found))
    return [replace(each, started_by_name=name_of(each.rotation.started_by, users)) for each in found]


def _reading(
    call: Call, *, states: Collection[RotationState] | None, project_id: str | None = None
) -> ReadPage[RotationStatus]:
    async def read(*, after: str, limit: int) -> Sequence[RotationStatus]:
        found = await call.services.ca_rotations.page(
            after=after, limit=limit, states=states, project_id=project_id
        )
        return await _with_names(call, found)

    return read


def _api_servers(status: RotationStatus) -> list[JsonObject]:
    rotation = status.rotation
    addresses = rotation.addresses or status.cluster.api_servers or (status.cluster.internal_url,)
    return [
        _api_server(
            address, rotation.proof(rotation.new_ca_id, address), rotation.proof(rotation.old_ca_id, address)
        )
        for address in addresses
    ]


def _api_server(address: str, new: CaProof | None, old: CaProof | None) -> JsonObject:
    last = max((each for each in (new, old) if each is not None), key=lambda each: each.at, default=None)
    return {
        "address": address,
        "new_ca": new.outcome if new is not None else None,
        "new_ca_at": new.at if new is not None else None,
        "old_ca": old.outcome if old is not None else None,
        "old_ca_at": old.at if old is not None else None,
        "by": last.by if last is not None else None,
        "detail": last.detail if last is not None else "",
    }
