"""Logs people in at a real OIDC issuer as a browser and a public client do, by its pages and OAuth calls."""

import base64
import hashlib
import re
import secrets
import ssl
from dataclasses import dataclass, field
from html import unescape
from typing import Any, cast
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx2

from support.real_issuers import CLIENT_ID, RealIssuer
from support.wait import SECONDS

REDIRECT = "http://127.0.0.1:4711/callback"
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
# More pages than any login has.
MOST_PAGES = 20

_FORM = re.compile(r"<form([^>]*)>(.*?)</form>", re.DOTALL)
_INPUT = re.compile(r"<input[^>]*type=\"hidden\"[^>]*>")
_ATTRIBUTE = re.compile(r"(\w+)=\"([^\"]*)\"")


@dataclass
class Login:
    """A browser, which keeps cookies, and a public client, at one issuer. `redirect`: of the client."""

    issuer: RealIssuer
    client_id: str = CLIENT_ID
    scope: str = "openid profile groups"
    redirect: str = REDIRECT
    http: httpx2.Client = field(init=False)

    def __post_init__(self) -> None:
        tls = ssl.create_default_context(cafile=str(self.issuer.ca_file))
        # No connection stays open, so there is nothing to close.
        limits = httpx2.Limits(max_keepalive_connections=0)
        self.http = httpx2.Client(verify=tls, trust_env=False, timeout=SECONDS, limits=limits)

    @property
    def discovery(self) -> dict[str, Any]:
        return self._json(self.http.get(f"{self.issuer.url}/.well-known/openid-configuration"))

    def by_code(self, account: str) -> dict[str, Any]:
        """Log in by authorization code with PKCE. Returns the token response."""
        verifier, state = secrets.token_urlsafe(48), secrets.token_urlsafe(16)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=")
        request = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": self.redirect,
            "scope": self.scope,
            "state": state,
            "code_challenge": challenge.decode(),
            "code_challenge_method": "S256",
        }
        address = str(httpx2.URL(self.discovery["authorization_endpoint"], params=request))
        last = self.follow(address, account)
        query = parse_qs(urlsplit(last.headers["location"]).query)
        assert query["state"] == [state], query
        granted = {
            "grant_type": "authorization_code",
            "code": query["code"][0],
            "redirect_uri": self.redirect,
        }
        return self.tokens(**granted, code_verifier=verifier)

    def by_device(self, account: str) -> dict[str, Any]:
        """Log in by device code. Returns the token response."""
        form = {"client_id": self.client_id, "scope": self.scope}
        asked = self._json(self.http.post(self.discovery["device_authorization_endpoint"], data=form))
        self.follow(asked["verification_uri_complete"], account)
        return self.tokens(grant_type=DEVICE_GRANT, device_code=asked["device_code"])

    def tokens(self, **form: str) -> dict[str, Any]:
        """The response of the token endpoint, for example to a refresh token."""
        data = {"client_id": self.client_id} | form
        return self._json(self.http.post(self.discovery["token_endpoint"], data=data))

    def follow(self, address: str, account: str) -> httpx2.Response:
        """Fill in all forms, until a page without a form or the redirect to the client."""
        response = self.http.get(address)
        for _ in range(MOST_PAGES):
            if response.is_redirect:
                if response.headers["location"].startswith(self.redirect):
                    return response
                response = self.http.get(urljoin(str(response.url), response.headers["location"]))
            elif (form := _FORM.search(response.raise_for_status().text)) is not None:
                response = self._submit(str(response.url), form, account)
            else:
                return response
        raise AssertionError(f"no end of pages after {response.url}")

    def _submit(self, page: str, form: "re.Match[str]", account: str) -> httpx2.Response:
        action = dict(_ATTRIBUTE.findall(form[1])).get("action", page)
        hidden = [dict(_ATTRIBUTE.findall(tag)) for tag in _INPUT.findall(form[2])]
        fields = {each["name"]: unescape(each["value"]) for each in hidden}
        entered = {"login": account, "password": "any", "sub": account, "logout": "yes"}
        return self.http.post(urljoin(page, unescape(action)), data=fields | entered)

    def log_out(self) -> None:
        """End the browser's session at the issuer, and all logins that began with it."""
        self.follow(self.discovery["end_session_endpoint"], "")

    @staticmethod
    def _json(response: httpx2.Response) -> dict[str, Any]:
        assert response.status_code == 200, response.text
        return cast("dict[str, Any]", response.json())
