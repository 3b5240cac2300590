"""What routes ask for: the services, the raw body, the caller, a strict JSON object.

The order is the contract's: a body's size is judged before its sender, the sender before the body's meaning.
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Annotated, NoReturn, Protocol, cast

from fastapi import Depends, Request

from clustercert.audit.log import AuditLog
from clustercert.authn import Authenticator
from clustercert.clusters import Clusters
from clustercert.errors import InvalidRequest, RequestTimeout, TooLarge, UnsupportedMedia
from clustercert.identity import Identity
from clustercert.inventory import Crls, Inventory
from clustercert.issuance import Issuance
from clustercert.model import Caller, JsonObject, Origin, UnverifiedRequest
from clustercert.revocation import Revoking
from clustercert.webhook import Webhook

MAX_BODY = 64 * 1024
# Of a Content-Length: Python refuses to read numbers of thousands.
MAX_DIGITS = 18


class Readiness(Protocol):
    """What `/readyz` asks: whether everything that issuing needs answers."""

    async def check(self) -> None:
        """Raises Unavailable, saying which part does not answer."""


class Gauges(Protocol):
    """Sets the gauges that are read from the store, before they are shown."""

    async def update(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Options:
    """The settings that the edge itself acts on; meanings as in `settings`."""

    public_url: str | None
    body_timeout: float
    insecure_external: bool
    get_clustercert: bool
    endpoints_as_list: bool
    metrics_public: bool
    metrics_token: str | None


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes call, put together by `app`."""

    issuance: Issuance
    clusters: Clusters
    identity: Identity
    revoking: Revoking
    audit_log: AuditLog
    inventory: Inventory
    crls: Crls
    webhook: Webhook
    credentials: Authenticator
    readiness: Readiness
    gauges: Gauges
    options: Options


async def services(request: Request) -> Services:
    """The services of this worker."""
    return cast("Services", request.app.state.services)


ServicesDep = Annotated[Services, Depends(services)]


async def raw_body(request: Request, parts: ServicesDep) -> bytes:
    """The whole body, as sent. Raises TooLarge or RequestTimeout; nothing of it is looked at."""
    body = await received(request, parts.options.body_timeout, keep=MAX_BODY, read=MAX_BODY)
    if body is None:
        raise _too_large(MAX_BODY)
    return body


async def received(request: Request, seconds: float, *, keep: int, read: int) -> bytes | None:
    """The whole body, as sent; None where it has more bytes than are kept.

    Raises TooLarge where it has more than are read, and RequestTimeout.
    """
    for name, declared in request.scope["headers"]:
        if name != b"content-length" or not declared.isdigit():
            continue
        if len(declared) > MAX_DIGITS or int(declared) > read:
            raise _too_large(read)
    body, length, more = bytearray(), 0, True
    try:
        async with asyncio.timeout(seconds):
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise RequestTimeout("The connection ended before the request's body did.")
                chunk = message.get("body", b"")
                length += len(chunk)
                if length > read:
                    raise _too_large(read)
                if length <= keep:
                    body += chunk
                more = message.get("more_body", False)
    except TimeoutError as error:
        raise RequestTimeout("The request's body did not arrive in time. Send it again.") from error
    return bytes(body) if length <= keep else None


def _too_large(read: int) -> TooLarge:
    return TooLarge(f"The request's body is larger than {read} bytes. Send less.")


RawBody = Annotated[bytes, Depends(raw_body)]


async def authenticated(request: Request, raw: RawBody, parts: ServicesDep) -> Caller:
    """Who sent the request. Raises Unauthenticated."""
    scope = request.scope
    caller = await parts.credentials.authenticate(
        UnverifiedRequest(
            method=request.method,
            raw_path=scope["raw_path"].decode("latin-1"),
            raw_query=scope["query_string"].decode("latin-1"),
            headers=tuple(scope["headers"]),
            body=raw,
            origin=origin(request),
        )
    )
    scope["clustercert.caller"] = caller
    return caller


CallerDep = Annotated[Caller, Depends(authenticated)]


def origin(request: Request) -> Origin:
    """Where the request came from; `edge` put it there."""
    return cast("Origin", request.scope["clustercert.origin"])


async def identity(parts: ServicesDep) -> Identity:
    """The built-in identity."""
    return parts.identity


IdentityDep = Annotated[Identity, Depends(identity)]


def base_url(request: Request) -> str:
    """How the client reaches the service, without a slash at the end: as configured, else as it asked."""
    configured = cast("Services", request.app.state.services).options.public_url
    return configured or f"{request.url.scheme}://{request.url.netloc}"


def require_json(request: Request) -> None:
    """Raises UnsupportedMedia unless the Content-Type is one of the two that the contract names."""
    values = [value for name, value in request.scope["headers"] if name == b"content-type"]
    if values == [b"application/json"]:
        return
    media_type, *parameters = (part.strip().lower() for part in b"".join(values[:1]).split(b";"))
    charset = [parameter.replace(b'"', b"") for parameter in parameters if parameter]
    if len(values) != 1 or media_type != b"application/json" or charset not in ([], [b"charset=utf-8"]):
        raise UnsupportedMedia(
            "Content type not supported. Send application/json or application/json;charset=utf-8."
        )


def json_object(raw: bytes) -> JsonObject:
    """The JSON object in a body. Raises InvalidRequest for anything else, saying what.

    Stricter than RFC 8259 allows itself to be: UTF-8 only, no name twice, no NaN or Infinity.
    """
    if not raw.strip():
        raise InvalidRequest("The body is empty. Send a JSON object.")
    try:
        value = _STRICT.decode(raw.decode("utf-8"))
    except RecursionError as error:
        raise InvalidRequest("The JSON is nested too deeply.") from error
    except ValueError as error:
        raise InvalidRequest("The body is not valid JSON in UTF-8.") from error
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return cast("JsonObject", value)


def _without_duplicates(pairs: list[tuple[str, object]]) -> JsonObject:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise InvalidRequest("The JSON object has a name twice. Send each name once.")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequest(f"{name} is not JSON. Send numbers only.")


_STRICT = json.JSONDecoder(object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
