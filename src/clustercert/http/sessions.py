"""Routes that list and end the caller's sessions in the console."""

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from clustercert.http import OWN, responses
from clustercert.http.dependencies import CallDep
from clustercert.http.openapi import ERRORS, described
from clustercert.http.responses import ResponseBody, Time


class SessionBody(ResponseBody):
    """A session in the console. `id` is the SHA-256 of its cookie in hex, so the id grants no access."""

    id: str
    method: str = Field(
        description="How the user logged in: `token` for a user of the built-in identity service, `oidc` or"
        " `keystone`."
    )
    address: str = Field(description="The source IP address of the login.")
    created_at: Time = Field(description="The time of the login.")
    seen_at: Time = Field(description="The time of the last request, up to a minute too early.")
    idle_at: Time = Field(description="When the session ends, unless a request uses the session before.")
    expires_at: Time = Field(description="The latest end of the session, even if the session is used.")
    current: bool = Field(description="Whether the present request belongs to this session.")


class SessionsBody(BaseModel):
    """The caller's open sessions, newest first, at most 500."""

    sessions: list[SessionBody]


router = APIRouter(tags=["Identity providers"])


@router.get(OWN + "/caller/sessions", responses=described("The sessions.", SessionsBody))
async def list_sessions(call: CallDep) -> Response:
    """List the caller's sessions in the console. Each browser in which the caller has logged in has a session."""
    sessions = [
        SessionBody.render(each, current=each.id == call.caller.credential_id)
        for each in await call.services.sessions.of_caller(call.caller)
    ]
    return responses.private({"sessions": sessions})


@router.delete(
    OWN + "/caller/sessions/{session_id}",
    status_code=204,
    responses=described("The session has ended.", status=204, errors=ERRORS),
    response_class=Response,
)
async def end_session(call: CallDep, session_id: str) -> Response:
    """End one of the caller's sessions in the console. The first 8 digits of the session's id are enough."""
    await call.services.sessions.end_one(call.caller, session_id)
    return Response(status_code=204)
