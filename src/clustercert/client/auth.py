"""The two ways to say who calls: a token, or a signature by an access key."""

from collections.abc import Callable, Generator
from datetime import UTC, datetime

import httpx

from clustercert.signature import TIMESTAMP_FORMAT, Credential, SignedParts, payload_hash, sign


class TokenAuth(httpx.Auth):
    """Sends a token."""

    def __init__(self, token: str) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["X-Auth-Token"] = self._token
        yield request


class AccessKeyAuth(httpx.Auth):
    """Signs with an access key, the way of Huawei Cloud's SDKs."""

    requires_request_body = True

    def __init__(self, access_key: str, secret_key: str, now: Callable[[], datetime] | None = None) -> None:
        self._credential = Credential("flat", access_key)
        self._secret = secret_key.encode()
        self._now = now or (lambda: datetime.now(UTC))

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["X-Sdk-Date"] = self._now().strftime(TIMESTAMP_FORMAT)
        signed = {"content-type", "host", "x-sdk-date"}
        headers = [
            (name.lower(), value) for name, value in request.headers.raw if name.decode().lower() in signed
        ]
        path, _, query = request.url.raw_path.decode("ascii").partition("?")
        parts = SignedParts(
            request.method, path, query, tuple(sorted(headers)), payload_hash(request.content)
        )
        request.headers["Authorization"] = sign(parts, self._credential, self._secret)
        yield request
