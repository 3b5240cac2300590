"""One exchange with a service: a JSON object goes, a JSON object comes, whatever else comes is a sentence.

What is said in them is the client's business.
"""

import json
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from urllib.parse import urlsplit

import httpx

from clustercert import __version__
from clustercert.errors import ClustercertError
from clustercert.model import JsonObject
from clustercert.signature import TIMESTAMP_FORMAT

CONNECT_SECONDS = 10
ANSWER_SECONDS = 60
# A list of some ten thousand clusters; a kubeconfig is a thousandth of it.
MAX_ANSWER_BYTES = 32 * 1024 * 1024
MAX_MESSAGE = 500
# What servers allow a signature to be off.
SKEW = timedelta(minutes=15)


class ClientError(ClustercertError):
    """The request came to nothing; the message says what to check."""


class Refused(ClientError):
    """The service answered with an error.

    Attributes:
        http_status: 400 to 599.
    """

    def __init__(self, message: str, http_status: int) -> None:
        super().__init__(message)
        self.http_status = http_status


@dataclass(frozen=True, slots=True)
class Answer:
    """What the service answered.

    Attributes:
        url: of the service.
        body: empty where there was none.
    """

    url: str
    headers: httpx.Headers
    body: JsonObject


class Wire:
    """A connection to one service. Raises ClientError, and nothing else, for whatever goes wrong."""

    def __init__(
        self, url: str, auth: httpx.Auth | None, ca_pem: str | None, transport: httpx.BaseTransport | None
    ) -> None:
        self.url = url
        self._http = httpx.Client(
            base_url=url,
            auth=auth,
            verify=_tls(ca_pem),
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            headers={"User-Agent": f"clustercert/{__version__}", "Accept": "application/json"},
            transport=transport,
        )

    def close(self) -> None:
        self._http.close()

    def exchange(
        self,
        method: str,
        path: str,
        *,
        body: JsonObject | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """The answer to one request, if it is a success."""
        with (
            _failures_translated(self.url),
            self._http.stream(method, path, json=body, headers=headers) as answer,
        ):
            content = _bounded(answer)
        if not answer.is_success:
            raise _refusal(answer, content, self.url)
        if not content:
            return Answer(self.url, answer.headers, {})
        with expected_form(self.url):
            return Answer(self.url, answer.headers, an_object(json.loads(content)))


def service_url(text: str, *, plain_http: bool = False) -> str:
    """The base of a service's addresses, from what a user says: with or without `/v3` or a slash at the end.

    Raises ClientError; for `http://` too, unless it is allowed or the service is on this machine.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    path = parts.path.rstrip("/").removesuffix("/v3")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or path:
        raise ClientError("Write the service's address like https://clustercert.example.com, without a path.")
    if parts.scheme == "http" and not plain_http and not _is_loopback(parts.hostname):
        raise ClientError(
            f"http://{parts.hostname} would send passwords and keys for everybody to read. Use https, or add "
            "--plain-http if the way there is protected otherwise."
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def an_object(value: object) -> JsonObject:
    """The value, if it is a JSON object. Raises TypeError."""
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


@contextmanager
def expected_form(url: str) -> Iterator[None]:
    """Raise ClientError where an answer hasn't the form in which the block reads it."""
    try:
        yield
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise ClientError(f"{url} answers, but not as this service does. Check the address.") from error


def _tls(ca_pem: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cadata=ca_pem)
    except (ssl.SSLError, ValueError) as error:
        raise ClientError("The CA file is not a PEM file of certificates.") from error


def _bounded(answer: httpx.Response) -> bytes:
    """The body, within bounds of size and time."""
    content = bytearray()
    deadline = time.monotonic() + ANSWER_SECONDS
    for chunk in answer.iter_bytes():
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise ClientError(f"The answer is larger than {MAX_ANSWER_BYTES // (1024 * 1024)} MiB.")
        if time.monotonic() > deadline:
            raise httpx.ReadTimeout("the answer has no end")
    return bytes(content)


@contextmanager
def _failures_translated(url: str) -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException as error:
        raise ClientError(f"{url} does not answer in time. Check the address and the network.") from error
    except httpx.ConnectError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error) or "certificate verify failed" in str(error):
            raise ClientError(
                f"The certificate of {url} is not to be trusted ({_reason(error)}). Name the service's CA with "
                "--ca-file, and check that the address is the one in the certificate."
            ) from error
        raise ClientError(
            f"Can't connect to {url} ({_reason(error)}). Check the address, and that it runs."
        ) from error
    except httpx.RequestError as error:
        raise ClientError(
            f"{url} does not answer as a service should ({_reason(error)}). Check the address: https or http?"
        ) from error


def _reason(error: Exception) -> str:
    return _one_line(str(error)) or type(error).__name__


def _refusal(answer: httpx.Response, content: bytes, url: str) -> ClientError:
    """What the service said, in its own words."""
    try:
        body = an_object(json.loads(content))
    except (ValueError, TypeError, RecursionError):
        return Refused(
            f"{url} answers with status {answer.status_code} and no explanation.", answer.status_code
        )
    inner = body.get("error")
    said = inner if isinstance(inner, dict) else body
    message = said.get("error_msg") or said.get("errorMessage") or said.get("message") or "no explanation"
    code = said.get("error_code") or said.get("errorCode") or said.get("code") or answer.status_code
    request_id = body.get("request_id") or answer.headers.get("X-Request-Id") or "unknown"
    text = f"{_one_line(str(message))} ({_one_line(str(code))}, request {_one_line(str(request_id))})"
    return Refused(text + _clock_hint(answer), answer.status_code)


def _clock_hint(answer: httpx.Response) -> str:
    """The cause of a refused signature that is hardest to see."""
    if answer.status_code != httpx.codes.UNAUTHORIZED or "X-Sdk-Date" not in answer.request.headers:
        return ""
    try:
        there = datetime.strptime(answer.headers.get("Date", ""), "%a, %d %b %Y %H:%M:%S GMT").replace(
            tzinfo=UTC
        )
        here = datetime.strptime(answer.request.headers["X-Sdk-Date"], TIMESTAMP_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return ""
    if abs(there - here) < SKEW:
        return ""
    return f" This machine's clock is {abs(there - here) // timedelta(minutes=1)} minutes off the service's: set it."


def _one_line(text: str) -> str:
    return " ".join(text.split())[:MAX_MESSAGE]
