"""Login in a browser: authorization code with PKCE, on a redirect to this machine."""

from collections.abc import Callable

from clustercert.client.connection import ClientError
from clustercert.client.oidc.authorization import AuthorizationRequest
from clustercert.client.oidc.errors import LoginRefused
from clustercert.client.oidc.grants import IssuerClient
from clustercert.client.oidc.loopback import LoopbackServer
from clustercert.client.oidc.pages import Page
from clustercert.client.oidc.tokens import Tokens

LOGIN_SECONDS = 300.0


def log_in_by_browser(
    client: IssuerClient, show: Callable[[str], None], seconds: float = LOGIN_SECONDS
) -> Tokens:
    """Wait until the user completes the login. Raises ClientError.

    Args:
        show: opens an address in a browser, or prints it.
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
            server.finish(Page(400, "The login failed", error.message))
            raise
        server.finish(Page(200, "You are logged in", "Go back to the terminal. You can close this window."))
        return tokens


def _require_one_browser(server: LoopbackServer) -> None:
    if server.is_contested:
        raise LoginRefused(
            "The address of this login was opened in two browsers, of which one may be another user's. Nobody is "
            "logged in. Run `clustercert login` again. If this repeats, log in with --device."
        )
