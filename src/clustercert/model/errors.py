"""All errors that are returned to callers, with HTTP status and CCE code.

* ClustercertError            500  CCE.01500001
    + InvalidRequest          400  CCE.01400001
    |   + UnsupportedMedia    400  CCE.01400006
    + Unauthenticated         401  CCE.01401001
    |   + NoCredential        401  CCE.01401001
    |   + UnsignedBody        401  CCE.01401001
    + Forbidden               403  CCE.01403001
    + NotFound                404  CCE.01404001
    |   + NoSuchRoute         404  APIGW.0101
    |   + UnknownUser         404  CCE.01404001
    + MethodNotAllowed        405  APIGW.0201
    + RequestTimeout          408  APIGW.0201
    + Conflict                409  CCE.01409001
    |   + ConcurrentChange    409  CCE.01409001
    + PreconditionFailed      412  CCE.01412001
    + TooLarge                413  APIGW.0201
    + UnsupportedEncoding     415  APIGW.0201
    + TooManyRequests         429  CCE.02429001   (carries Retry-After)
    |   + TooManyFailures     429  CCE.02429001   (carries Retry-After)
    + HeaderTooLarge          431  APIGW.0201
    + SignerError             500  CCE.01500001
    + UnsealError             500  CCE.01500001
    + CustodyError            500  CCE.01500001
    + SchemaError             500  CCE.01500001
    + LogDamaged              500  CCE.01500001
    + RemoteFailed            502  CCE.01502001
    + Unavailable             503  CCE.01503001   (carries Retry-After)
        + CredentialUnverified  503  CCE.01503001
        + KeysUnavailable     503  CCE.01503001
        + StoreFault          500  CCE.01500001

The message tells the caller what is wrong and what to do. The cause (`raise … from`) is for the log.
Source of the codes: CCE API reference, "Status Code" and "Error Code". Codes that are not in the reference are our own.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from clustercert.model.identity import User

_NO_TRACE: Mapping[str, object] = MappingProxyType({})


class ClustercertError(Exception):
    """The base class of all errors in this module. The default message is never sent to callers.

    Attributes:
        message: the message for the caller.
        trace: the policy's decision trace, for the audit event; empty if the policy did not deny the request.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "CCE.01500001"

    def __init_subclass__(cls, *, status: int | None = None, code: str | None = None) -> None:
        cls.status = status or cls.status
        cls.code = code or cls.code

    def __init__(self, message: str = "Internal error.", *, trace: Mapping[str, object] = _NO_TRACE) -> None:
        super().__init__(message)
        self.message = message
        self.trace = trace


class InvalidRequest(ClustercertError, status=400, code="CCE.01400001"):
    """The request is malformed or has invalid values."""


class UnsupportedMedia(InvalidRequest, code="CCE.01400006"):
    """The Content-Type is missing or not JSON."""


class Unauthenticated(ClustercertError, status=401, code="CCE.01401001"):
    """The credential is missing or invalid. The message for the caller does not reveal the reason: see `UnsignedBody`.

    Attributes:
        reason: what is wrong, for the log.
        known: for the log and the audit event, the id of the user or access key that the request names, if it exists;
            else empty.
        unknown: the name that the request gives if no such account is known. May be a secret in the wrong field, so
            only its keyed hash may be logged or stored.
    """

    def __init__(self, reason: str, *, known: str = "", unknown: str = "") -> None:
        super().__init__("Authorization failed.")
        self.reason = reason
        self.known = known
        self.unknown = unknown


class NoCredential(Unauthenticated):
    """The request has no credential."""


class UnsignedBody(Unauthenticated):
    """The signature of the request does not cover its body, because the sender's signed headers say so.

    The only failed authentication whose message gives the reason. Raised before the access key is looked up, so the
    message reveals only what the request says.
    """

    def __init__(self) -> None:
        super().__init__("the signature does not cover the body: X-Sdk-Content-Sha256 is UNSIGNED-PAYLOAD")
        self.message = (
            "Authorization failed. X-Sdk-Content-Sha256 is UNSIGNED-PAYLOAD, so the signature does not cover the body."
            " Sign the SHA-256 of the body instead."
        )


class Forbidden(ClustercertError, status=403, code="CCE.01403001"):
    """The caller is authenticated but not authorized.

    Attributes:
        unmet_conditions: the first false clauses of the policy's rules, including rules that the caller may not see.
            Only for the log line.
    """

    def __init__(
        self,
        message: str,
        *,
        trace: Mapping[str, object] = _NO_TRACE,
        unmet_conditions: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(message, trace=trace)
        self.unmet_conditions = unmet_conditions


class NotFound(ClustercertError, status=404, code="CCE.01404001"):
    """The object does not exist, or the caller has no access to its project. The message does not reveal the reason."""

    def __init__(self, message: str = "Resource not found. Check the project id and the cluster id.") -> None:
        super().__init__(message)


class NoSuchRoute(NotFound, code="APIGW.0101"):
    """The API has no such path."""


class UnknownUser(NotFound):
    """The service has never seen a user with this id, or the caller may not know about this user."""

    def __init__(self, user_id: str) -> None:
        super().__init__(
            f"No user with the id {user_id} has a role in this project, or had a certificate for one of its clusters."
            " `clustercert certificate list --cluster CLUSTER` shows the ids of users with certificates."
        )


class MethodNotAllowed(ClustercertError, status=405, code="APIGW.0201"):
    """The path does not support the HTTP method.

    Attributes:
        allow: the supported methods. Source: RFC 9110 section 15.5.6.
    """

    def __init__(self, message: str, *, allow: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.allow = tuple(allow)


class RequestTimeout(ClustercertError, status=408, code="APIGW.0201"):
    """The request did not arrive in time."""


class Conflict(ClustercertError, status=409, code="CCE.01409001"):
    """The name exists already, or the change conflicts with another change."""


class ConcurrentChange(Conflict):
    """Another request changed the object at the same time."""

    def __init__(self) -> None:
        super().__init__("Concurrent modification. Reload and try again.")


class PreconditionFailed(ClustercertError, status=412, code="CCE.01412001"):
    """The object is not in the state that the request's If-Match or If-None-Match requires."""


class TooLarge(ClustercertError, status=413, code="APIGW.0201"):
    """The request's body is too large."""


class UnsupportedEncoding(ClustercertError, status=415, code="APIGW.0201"):
    """The request's body is compressed, or has another content coding."""


class TooManyRequests(ClustercertError, status=429, code="CCE.02429001"):
    """A rate limit or quota is exceeded.

    Attributes:
        retry_after: whole seconds for the Retry-After header.
        user: for the audit log, the authenticated user if the request has no caller, such as a login.
    """

    def __init__(self, message: str, *, retry_after: int, user: "User | None" = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.user = user


class TooManyFailures(TooManyRequests):
    """Too many authentications from the request's source address have failed.

    Attributes:
        known, unknown: as in `Unauthenticated`.
    """

    def __init__(self, message: str, *, retry_after: int, known: str = "", unknown: str = "") -> None:
        super().__init__(message, retry_after=retry_after)
        self.known = known
        self.unknown = unknown


class HeaderTooLarge(ClustercertError, status=431, code="APIGW.0201"):
    """The request's path, query or header fields exceed their limits."""


class SignerError(ClustercertError):
    """A signer failed, or returned a certificate that does not match the request."""


class UnsealError(ClustercertError):
    """A sealed secret can't be decrypted: it is damaged, copied from another row, or sealed by an unknown data key.

    Attributes:
        reason: what is wrong, for the log; not sent to callers.
    """

    def __init__(self, reason: str) -> None:
        super().__init__("The service can't decrypt one of its secrets. Contact its operator.")
        self.reason = reason


class CustodyError(ClustercertError):
    """The key-encryption keys or data keys can't be used. The message is for the operator."""


class SchemaError(ClustercertError):
    """This program needs a different version of the database schema. The message is for the operator."""


class LogDamaged(ClustercertError):
    """The audit log does not match its signed checkpoint. The message is for the operator."""


class RemoteFailed(ClustercertError, status=502, code="CCE.01502001"):
    """A remote signer, identity service or API server failed."""


class Unavailable(ClustercertError, status=503, code="CCE.01503001"):
    """A temporary failure: the database or the keys are unavailable, or the service is overloaded.

    Attributes:
        retry_after: whole seconds for the Retry-After header; if None, the header is omitted.
    """

    def __init__(
        self, message: str, *, retry_after: int | None = 1, trace: Mapping[str, object] = _NO_TRACE
    ) -> None:
        super().__init__(message, trace=trace)
        self.retry_after = retry_after


class CredentialUnverified(Unavailable):
    """A credential can't be verified now, because its issuer, or the keys of the issuer, can't be reached."""


class KeysUnavailable(Unavailable):
    """A key management service can't be used now, so this process can't decrypt its data keys.

    Attributes:
        reason: which key-encryption key can't be used, and why, for the operator; not sent to callers.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            "The service is waiting for its key management service, which decrypts its keys. Try again in a few "
            "seconds.",
            retry_after=5,
        )
        self.reason = reason


class StoreFault(Unavailable):
    """The database can't be used until the operator acts: it is damaged, or access is denied.

    Attributes:
        reason: what is wrong and what to do, for the operator; not sent to callers.
    """

    status = 500
    code = "CCE.01500001"

    def __init__(self, reason: str) -> None:
        super().__init__(
            "The service can't use its database. Ask its operator to read the log.", retry_after=None
        )
        self.reason = reason

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.reason!r})"
