"""Who sent a request: the port that the edge calls. What users and keys exist is `identity`'s business."""

from typing import Protocol

from clustercert.model import Caller, UnverifiedRequest


class Authenticator(Protocol):
    """Answers who sent a request, from its headers and raw body alone."""

    async def authenticate(self, request: UnverifiedRequest) -> Caller:
        """Tell who sent the request.

        Raises:
            Unauthenticated: for every failure, in the same words; its `reason` is for the log.
        """
