"""Authenticates requests that the console sends to this service's own routes for a person who has logged in."""

from dataclasses import dataclass
from typing import Protocol

from clustercert.authn.credentials import UnverifiedCredential
from clustercert.model import Caller, Origin, UnverifiedRequest

# The scheme in an Authorization header ends at the first space. So no header has this scheme.
CONSOLE_SCHEME = "console session"


def session_credential(cookie: str) -> UnverifiedCredential:
    """Return the credential for requests of the session with this cookie."""
    return UnverifiedCredential(CONSOLE_SCHEME, cookie)


class SessionLookup(Protocol):
    """Looks up sessions of the console. Implemented by `identity`."""

    async def caller_of_session(self, cookie: str, origin: Origin) -> Caller:
        """Return the session's user. Raises Unauthenticated if the session is unknown or has ended."""


@dataclass(frozen=True, slots=True)
class SessionAuthenticator:
    """Authenticates by the cookie of a session. Only the console creates such credentials."""

    sessions: SessionLookup

    def accepts(self, credential: UnverifiedCredential) -> bool:
        return credential.scheme == CONSOLE_SCHEME

    async def authenticate(self, credential: UnverifiedCredential, request: UnverifiedRequest) -> Caller:
        """See `Authenticator`."""
        return await self.sessions.caller_of_session(credential.text, request.origin)
