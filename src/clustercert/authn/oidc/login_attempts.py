"""Logins in a browser that have begun, and their failures. These work without the libraries for OIDC."""

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, Self

from clustercert.model.errors import Unauthenticated
from clustercert.model.oauth import base64url, new_secret

LOGIN_SECONDS = 600
"""How long a person may take to log in at the issuer."""
MAX_AGE = timedelta(hours=12)
"""If a person logged in at the issuer earlier than this, the issuer asks for the password again."""
MAX_AGE_AGAIN = timedelta(minutes=5)
"""Like `MAX_AGE`, for a login that proves who a person is before an action that affects others."""
MAX_COOKIE = 4096


class LoginRefused(Unauthenticated):
    """A login failed. The message says why, because a person reads it; the reason for the log may say more."""

    def __init__(self, message: str, reason: str = "", *, known: str = "") -> None:
        super().__init__(reason or message, known=known)
        self.message = message


@dataclass(frozen=True, slots=True)
class LoginAttempt:
    """A login that has begun. The browser keeps this attempt in a cookie until the issuer sends the browser back.

    Attributes:
        issuer: name of the issuer.
        next_page: the page to show after the login.
        again: whether the person must prove who they are now, even if they are logged in at the issuer.
        started_at: seconds since 1970.
        key: random text. The secrets of this login are derived from `key` and the other fields, so a changed cookie
            does not match the `state` in the issuer's answer.
    """

    issuer: str
    next_page: str
    again: bool
    started_at: int
    key: str = field(default_factory=new_secret, repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the value of a cookie. Raises ValueError."""
        if len(text) > MAX_COOKIE:
            raise ValueError("too long")
        try:
            values = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        except RecursionError:
            values = None
        match values:
            case [str(issuer), str(next_page), bool(again), int(started_at), str(key)] if key.isascii():
                return cls(issuer, next_page, again, started_at, key)
            case _:
                raise ValueError("not a login")

    @property
    def text(self) -> str:
        """The value of the cookie."""
        return base64url(json.dumps([*self._fields, self.key]).encode())

    def secret(self, purpose: Literal["state", "nonce", "verifier"]) -> str:
        """Return the `state`, the nonce or the PKCE code verifier, 43 characters."""
        content = json.dumps([purpose, *self._fields]).encode()
        return base64url(hmac.new(self.key.encode(), content, hashlib.sha256).digest())

    def is_answered_by(self, state: str, now: datetime) -> bool:
        """Whether an answer with this `state` belongs to this login, and arrived in time."""
        in_time = self.started_at <= int(now.timestamp()) <= self.started_at + LOGIN_SECONDS
        return in_time and hmac.compare_digest(state.encode(), self.secret("state").encode())

    @property
    def max_age(self) -> timedelta:
        return MAX_AGE_AGAIN if self.again else MAX_AGE

    @property
    def _fields(self) -> tuple[str, str, bool, int]:
        return self.issuer, self.next_page, self.again, self.started_at
