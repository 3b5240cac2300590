"""Everything that can go wrong and be told to a caller, with its HTTP status and CCE code.

* ClustercertError            500  CCE.01500001
    + InvalidRequest          400  CCE.01400001
    |   + UnsupportedMedia    400  CCE.01400006
    + Unauthenticated         401  CCE.01401001
    + Forbidden               403  CCE.01403001
    + NotFound                404  CCE.01404001
    |   + NoSuchRoute         404  APIGW.0101
    + MethodNotAllowed        405  APIGW.0201
    + RequestTimeout          408  APIGW.0201
    + Conflict                409  CCE.01409001
    + TooLarge                413  APIGW.0201
    + LimitReached            429  CCE.02429001
    + HeaderTooLarge          431  APIGW.0201
    + SignerError             500  CCE.01500001
    + SealError               500  CCE.01500001
    + CustodyError            500  CCE.01500001
    + SchemaError             500  CCE.01500001
    + LogDamaged              500  CCE.01500001
    + RemoteFailed            502  CCE.01502001
    + Unavailable             503  CCE.01503001   (carries Retry-After)

A message is a sentence for the caller that says what to do; the cause (`raise … from`) is for the log.
Source of the codes: CCE API reference, "Status Code" and "Error Code"; ours where they have none.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import ClassVar


class ClustercertError(Exception):
    """The root; on its own it is a bug, and its message never reaches a caller.

    Attributes:
        trace: how the policy came to a refusal, for the audit; empty where it was not asked.
        recorded: whether the audit has an event of it already, or is to have none.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "CCE.01500001"
    trace: Mapping[str, object] = MappingProxyType({})
    recorded: bool = False

    @property
    def message(self) -> str:
        """The sentence for the caller."""
        return str(self.args[0]) if self.args else "Internal error."


class InvalidRequest(ClustercertError):
    """The request does not say what the API asks for."""

    status = 400
    code = "CCE.01400001"


class UnsupportedMedia(InvalidRequest):
    """The Content-Type is missing or not JSON."""

    code = "CCE.01400006"


class Unauthenticated(ClustercertError):
    """No credential, or one that proves nothing. Mute: `message` is for the log alone.

    Attributes:
        reason: why, for the log.
        known: the id of the user or access key that there is and that was named, for the audit; empty where none was.
    """

    status = 401
    code = "CCE.01401001"

    def __init__(self, reason: str, *, known: str = "") -> None:
        super().__init__("Authorization failed.")
        self.reason = reason
        self.known = known


class Forbidden(ClustercertError):
    """The caller is known and may not do this."""

    status = 403
    code = "CCE.01403001"


class NotFound(ClustercertError):
    """Missing, or another tenant's: the same words for both."""

    status = 404
    code = "CCE.01404001"

    def __init__(self, message: str = "Resource not found. Check the project id and the cluster id.") -> None:
        super().__init__(message)


class NoSuchRoute(NotFound):
    """No such path in this API."""

    code = "APIGW.0101"


class MethodNotAllowed(ClustercertError):
    """The path exists, the method does not.

    Attributes:
        allow: the methods that the path takes. Source: RFC 9110, 15.5.6.
    """

    status = 405
    code = "APIGW.0201"

    def __init__(self, message: str, *, allow: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.allow = tuple(allow)


class RequestTimeout(ClustercertError):
    """The request did not arrive in time."""

    status = 408
    code = "APIGW.0201"


class Conflict(ClustercertError):
    """A thing of that name exists already."""

    status = 409
    code = "CCE.01409001"


class TooLarge(ClustercertError):
    """The body is over its bound."""

    status = 413
    code = "APIGW.0201"


class LimitReached(ClustercertError):
    """The caller has used up an allowance."""

    status = 429
    code = "CCE.02429001"


class HeaderTooLarge(ClustercertError):
    """The request's target and header fields are over their bounds."""

    status = 431
    code = "APIGW.0201"


class SignerError(ClustercertError):
    """A signer answered wrongly; nothing that it signed leaves the service."""


class SealError(ClustercertError):
    """A secret at rest does not open: damaged, moved to another row, or sealed by an unknown key.

    Mute like `Unauthenticated`: what is wrong with the keys is no caller's business.

    Attributes:
        reason: what does not open and why, for the log.
    """

    def __init__(self, reason: str) -> None:
        super().__init__("A secret of this service does not open. Tell its operator.")
        self.reason = reason


class CustodyError(ClustercertError):
    """The keys can't be used as they are: a sentence for the operator, at the start and in the CLI."""


class SchemaError(ClustercertError):
    """The database has another schema: a sentence for the operator, at the start and in the CLI."""


class LogDamaged(ClustercertError):
    """The audit log is not what its key signed: a sentence for the operator, in the log and in the CLI."""


class RemoteFailed(ClustercertError):
    """A remote signer or identity service failed."""

    status = 502
    code = "CCE.01502001"


class Unavailable(ClustercertError):
    """Not now: database, keys or overload.

    Attributes:
        retry_after: whole seconds for the Retry-After header, or None for no such header.
    """

    status = 503
    code = "CCE.01503001"

    def __init__(self, message: str, *, retry_after: int | None = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after
