"""Whoever is known and is refused something leaves an event; who asks for a certificate does so in `issuance`."""

from fastapi import Request

from clustercert.errors import ClustercertError, Forbidden
from clustercert.model import AuditEvent, Caller, utc_now
from clustercert.web.deps import Services

# A path names what was wanted; one of ours is shorter.
MAX_PATH = 256


async def record(request: Request, services: Services, failure: ClustercertError) -> None:
    """Record what a caller was forbidden, before they are told. Raises Unavailable.

    What isn't there, or is another project's, is no refusal here: it would be an event for every wrong address.
    """
    caller: Caller | None = request.scope.get("clustercert.caller")
    if caller is None or failure.recorded or not isinstance(failure, Forbidden):
        return
    project_id = str(request.path_params.get("project_id", ""))
    path = request.url.path
    plain = path if path.isprintable() else ascii(path)
    await services.issuance.ledger.note(
        AuditEvent(
            at=utc_now(),
            kind="request.refused",
            project_id=project_id if caller.roles_in(project_id) else None,
            actor=caller.user.id,
            subject=plain if len(plain) <= MAX_PATH else f"{plain[:MAX_PATH]}…",
            origin=caller.origin,
            detail={
                "method": request.method,
                "error": type(failure).__name__,
                "message": failure.message,
                "auth_method": caller.method,
            },
        )
    )
