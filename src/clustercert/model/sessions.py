"""Sessions of people in the console."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from clustercert.model.requests import AuthMethod

# A session ends after `IDLE_LIFETIME` without a request, and `LIFETIME` after its login.
IDLE_LIFETIME = timedelta(hours=1)
LIFETIME = timedelta(hours=12)
# Actions with a great effect need a login that is at most this old.
RECENT_LOGIN = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Session:
    """A session of the console. The cookie is not stored.

    Attributes:
        id: SHA-256 of the cookie, 64 lower-case hex digits.
        issuer: the URL of the OIDC issuer or of Keystone, or `built-in`.
        method: how the user logged in: `token` for a user of the built-in identity service, `oidc` or `keystone`.
        address: the source IP address of the login.
        seen_at: the time of the last request, up to a minute too early.
        authenticated_at: when the user last proved who they are; None if the issuer did not say when.
        sid, sub: the issuer's ids of its session and of its user, for logouts by the issuer.
    """

    id: str
    user_id: str
    issuer: str
    method: AuthMethod
    address: str
    created_at: datetime
    seen_at: datetime
    authenticated_at: datetime | None
    sid: str | None = None
    sub: str | None = None

    @property
    def idle_at(self) -> datetime:
        """When the session ends, unless a request uses the session before."""
        return min(self.seen_at + IDLE_LIFETIME, self.expires_at)

    @property
    def expires_at(self) -> datetime:
        """When the session ends even if it is in use."""
        return self.created_at + LIFETIME

    def is_open(self, now: datetime) -> bool:
        """Whether the session is neither too old nor unused for too long."""
        return now < self.idle_at

    def has_recent_login(self, now: datetime) -> bool:
        """Whether the user proved who they are in the last minutes."""
        return self.authenticated_at is not None and now - self.authenticated_at <= RECENT_LOGIN
