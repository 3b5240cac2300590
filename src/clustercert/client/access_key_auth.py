"""Authentication with a signature made with an access key."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from clustercert.client.transport import Request
from clustercert.pki.request_signature import (
    TIMESTAMP_FORMAT,
    SignatureCredential,
    SignedParts,
    payload_hash,
    sign,
)

_SIGNED = frozenset({"content-type", "host", "x-sdk-date"})


class AccessKeyAuth:
    """Signs each request with an access key, like Huawei Cloud's SDKs."""

    def __init__(self, access_key: str, secret_key: str, now: Callable[[], datetime] | None = None) -> None:
        self._credential = SignatureCredential("flat", access_key)
        self._secret = secret_key.encode()
        self._now = now or (lambda: datetime.now(UTC))

    def headers(self, request: Request) -> Mapping[str, str]:
        date = self._now().strftime(TIMESTAMP_FORMAT)
        headers = {name.lower(): value for name, value in request.headers.items()} | {"x-sdk-date": date}
        signed = tuple((name.encode(), headers[name].encode()) for name in sorted(_SIGNED & headers.keys()))
        path, _, query = request.target.partition("?")
        parts = SignedParts(request.method, path, query, signed, payload_hash(request.content))
        return {"X-Sdk-Date": date, "Authorization": sign(parts, self._credential, self._secret)}
