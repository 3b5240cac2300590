"""Login at an OIDC issuer in the user's browser. The issuer redirects the browser to a listener on loopback."""

import contextlib
import queue
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from html import escape
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit

from clustercert.client.connection import ClientError
from clustercert.client.oidc.issuer import LoginRefused
from clustercert.client.oidc.tokens import AuthorizationRequest, IssuerClient, OidcTokens


class ResultPage(NamedTuple):
    """A web page that shows the result of a login. `title` and `text` are plain text, not HTML."""

    status: int
    title: str
    text: str


def page_html(page: ResultPage) -> str:
    """Return the page as HTML without scripts and styles."""
    title = escape(page.title)
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title></head>\n'
        f"<body>\n<h1>{title}</h1>\n<p>{escape(page.text)}</p>\n</body>\n</html>\n"
    )


# How long to wait for the user to log in.
LOGIN_SECONDS = 300.0
_CONNECTION_SECONDS = 10
_RESULT_SECONDS = 60
_MAX_CONNECTIONS = 32
_MAX_TARGET = 16 * 1024
_MAX_FIELDS = 20
_COOKIE = "clustercert-login"

_UNKNOWN = ResultPage(404, "Not found", "There is nothing at this address.")
_FOREIGN = ResultPage(
    400,
    "This login can't continue",
    "The answer does not belong to the login that waits in the terminal, or comes from another browser. Close this "
    "window, and log in again.",
)
_OPENED = ResultPage(
    403,
    "Opened elsewhere",
    "This address was already opened in another browser, so the login in the terminal has ended. Run the command "
    "again.",
)

Parameters = Mapping[str, str]


class LoopbackServer:
    """A server on loopback that waits for one authorization response from the issuer.

    Args:
        redirect_uris: the first URI with a free port is used. A URI without a port stands for any free port.

    Attributes:
        redirect_uri: the redirect URI that is used, with the port.
        start_url: the address to open in a browser.
        delivered: an event that is set after the browser received the result.
        is_contested: whether a second browser opened the start page.
    """

    def __init__(self, redirect_uris: Sequence[str]) -> None:
        self._listener, self.redirect_uri = _listener(redirect_uris, _Handler)
        self._listener.login = self
        parts = urlsplit(self.redirect_uri)
        self.host = parts.netloc
        self.callback_path = parts.path or "/"
        self.start_path = f"/login-{secrets.token_urlsafe(16)}"
        self.start_url = f"{parts.scheme}://{parts.netloc}{self.start_path}"
        self.address = ""
        self.accepts: Callable[[Parameters], bool] = lambda _: False
        self._lock = threading.Lock()
        self._browser: str | None = None
        self._answered = False
        self._answers: queue.Queue[Parameters] = queue.Queue(1)
        self._results: queue.Queue[ResultPage] = queue.Queue(1)
        self.delivered = threading.Event()
        self.is_contested = False
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._thread.is_alive():
            self._listener.shutdown()
        self._listener.server_close()

    def start(self, address: str, accepts: Callable[[Parameters], bool]) -> None:
        """Begin to serve.

        Args:
            address: the address to which the start page redirects.
            accepts: returns whether the parameters of a response belong to this login.
        """
        self.address, self.accepts = address, accepts
        self._thread.start()

    def wait(self, seconds: float) -> Parameters | None:
        """Return the parameters of the response: `None` if no response came in time, `{}` after `end` was called."""
        try:
            return self._answers.get(timeout=seconds)
        except queue.Empty:
            return None

    def finish(self, page: ResultPage) -> None:
        """Show the result in the waiting browser, and wait until the browser has received the result."""
        self._results.put(page)
        self.delivered.wait(_CONNECTION_SECONDS)

    def browser_cookie(self, sent: str | None) -> str | None:
        """Return a cookie for the browser that opens the start page; `None` if another browser has opened it."""
        with self._lock:
            if self._browser is None:
                self._browser = secrets.token_urlsafe(32)
            elif not self._is_browser(sent):
                self.is_contested = True
                return None
            return self._browser

    def end(self) -> None:
        """Stop accepting responses, and make `wait` return."""
        with self._lock:
            if not self._answered:
                self._answered = True
                self._answers.put({})

    def result_of(self, parameters: Parameters, cookie: str | None) -> ResultPage:
        """Pass a response to the waiting command. Returns the page that says whether the login succeeded."""
        with self._lock:
            if (
                self._answered
                or self.is_contested
                or not self._is_browser(cookie)
                or not self.accepts(parameters)
            ):
                return _FOREIGN
            self._answered = True
        self._answers.put(parameters)
        try:
            return self._results.get(timeout=_RESULT_SECONDS)
        except queue.Empty:
            return _FOREIGN

    def _is_browser(self, sent: str | None) -> bool:
        if self._browser is None or sent is None:
            return False
        return secrets.compare_digest(sent.encode(), self._browser.encode())


class _Listener(ThreadingHTTPServer):
    """Limits the number of simultaneous connections. Never resolves names."""

    daemon_threads = True
    block_on_close = False
    login: LoopbackServer

    def __init__(self, *arguments: Any) -> None:
        self._slots = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__(*arguments)

    def server_bind(self) -> None:
        # Bind without HTTPServer's method, which would look up the host name of the address.
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment] # IPv4

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that the browser closes early."""


class _Handler(BaseHTTPRequestHandler):
    timeout = _CONNECTION_SECONDS
    server: _Listener

    def do_GET(self) -> None:
        login = self.server.login
        path, _, query = self.path.partition("?")
        # Reject other host names, which could resolve to this address by DNS rebinding.
        if self.headers.get_all("Host") != [login.host] or len(self.path) > _MAX_TARGET:
            self._show(_FOREIGN)
        elif path == login.start_path:
            self._redirect(login)
        elif path == login.callback_path:
            parameters = _parameters(query)
            page = login.result_of(parameters, self._cookie()) if parameters is not None else _FOREIGN
            self._show(page)
            if page is not _FOREIGN:
                login.delivered.set()
        else:
            self._show(_UNKNOWN)

    def _redirect(self, login: LoopbackServer) -> None:
        cookie = login.browser_cookie(self._cookie())
        if cookie is None:
            try:
                self._show(_OPENED)
            finally:
                login.end()
            return
        self.send_response(303)
        self.send_header("Location", login.address)
        # SameSite=Lax, because the issuer's redirect comes from another site.
        self.send_header("Set-Cookie", f"{_COOKIE}={cookie}; HttpOnly; SameSite=Lax; Path=/")
        self._end_headers(b"")

    def _show(self, page: ResultPage) -> None:
        content = page_html(page).encode()
        self.send_response(page.status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self._end_headers(content)
        self.wfile.write(content)
        self.wfile.flush()

    def _end_headers(self, content: bytes) -> None:
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()

    def _cookie(self) -> str | None:
        cookies: SimpleCookie = SimpleCookie()
        with contextlib.suppress(CookieError):
            cookies.load(self.headers.get("Cookie", ""))
        return cookies[_COOKIE].value if _COOKIE in cookies else None

    def version_string(self) -> str:
        return "clustercert"

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name in the standard library
        """Write no log, because the addresses contain authorization codes."""


def _parameters(query: str) -> Parameters | None:
    """Return the parameters of a query, or `None` if the query is malformed or repeats a parameter."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError:
        return None
    parameters = dict(pairs)
    return parameters if len(parameters) == len(pairs) else None


def _listener(redirect_uris: Sequence[str], handler: type[_Handler]) -> tuple[_Listener, str]:
    """Listen at the first redirect URI with a free port. Raises ClientError if all ports are in use."""
    for uri in redirect_uris:
        parts = urlsplit(uri)
        try:
            listener = _Listener(("127.0.0.1", parts.port or 0), handler)
        except OSError:
            continue
        port = listener.socket.getsockname()[1]
        return listener, parts._replace(netloc=f"{parts.hostname}:{port}").geturl()
    raise ClientError(
        f"Other programs listen on the addresses to which the issuer redirects: {', '.join(redirect_uris)}. End one of "
        "them, or log in with --device."
    )


def log_in_by_browser(
    client: IssuerClient, show: Callable[[str], None], service: str, seconds: float = LOGIN_SECONDS
) -> OidcTokens:
    """Let the user log in at the issuer in a browser, and return the tokens. Raises ClientError.

    Args:
        show: opens an address in a browser, or prints it.
        service: the service's address, which the page after the login shows.
    """
    issuer = client.issuer
    with LoopbackServer(issuer.client.redirect_uris) as server:
        request = AuthorizationRequest(client, server.redirect_uri)
        server.start(request.url, request.is_response)
        show(server.start_url)
        answer = server.wait(seconds)
        if answer is None:
            raise LoginRefused(
                f"No answer came from the browser within {seconds / 60:.0f} minutes. Run `clustercert login` again. If "
                f"the browser shows an error about the redirect, register {server.redirect_uri} for the client "
                f"{issuer.client.client_id} at {issuer.url}."
            )
        _require_one_browser(server)
        try:
            tokens = request.tokens(answer)
            _require_one_browser(server)
        except ClientError as error:
            server.finish(ResultPage(400, "The login failed", error.message))
            raise
        server.finish(
            ResultPage(
                200,
                "You are logged in",
                f"{tokens.user} logged in at {issuer.url}, for {service}. Go back to the terminal. You can close this "
                "window.",
            )
        )
        return tokens


def _require_one_browser(server: LoopbackServer) -> None:
    if server.is_contested:
        raise LoginRefused(
            "The address of this login was opened in two browsers, and one may be another user's. So the login was "
            "cancelled. Run `clustercert login` again. If this repeats, log in with --device."
        )
