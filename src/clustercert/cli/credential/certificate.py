"""The credential that the exec plugin gets (a certificate with its key, or a token), and the time of its renewal."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from clustercert.cli import clock
from clustercert.cli.credential.cache import CachedCredential
from clustercert.model.choices import CredentialKind
from clustercert.model.times import rfc3339

# Tell kubectl that the certificate expires this much earlier, so that kubectl asks for a new certificate in time.
_EARLY = timedelta(seconds=60)
_MIN_LEFT = timedelta(minutes=5)
# How often to ask whether the CA of a long-lived certificate is being replaced. Certificates of the default lifetime
# are renewed sooner.
_CA_CHECK = timedelta(hours=8)
# The plugin reminds the user this long before the end of a login.
_REMINDER = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate with its key, in PEM, or a token.

    Attributes:
        lifetime: the time from the credential's issue to its end.
        not_after: the end by the service's clock.
        login: a string that identifies the version of the login's file, from `cache.login_state`.
        user: the user who was logged in, as DOMAIN/NAME.
        login_ends_at: when the login ends; `None` if the login renews itself, or does not end.
        access_request: the id of the access request whose groups the credential has; `None` if there is none.
        token: the token; `None` for a certificate. With a token, `certificate_pem` and `key_pem` are empty.
        notes: sentences about a token that the user should read; see `token_notes`.
    """

    certificate_pem: str
    key_pem: str = field(repr=False)
    lifetime: timedelta
    not_after: datetime
    login: str
    user: str
    login_ends_at: datetime | None = None
    access_request: str | None = None
    token: str | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> CredentialKind:
        return "certificate" if self.token is None else "token"

    def cache_entry(self, now: float) -> CachedCredential:
        """Return the cache entry of a credential that was issued at `now`, in seconds by this machine's clock.

        See `due_time` and `_CA_CHECK` for the time of the renewal.
        """
        expires = datetime.fromtimestamp(now, UTC) + self.lifetime
        content = (
            {"clientCertificateData": self.certificate_pem, "clientKeyData": self.key_pem}
            if self.token is None
            else {"token": self.token}
        )
        status = {**content, "expirationTimestamp": rfc3339(expires - _EARLY)}
        due = due_time(int(now), int(expires.timestamp()))
        body = {"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", "status": status}
        return CachedCredential(
            issued=int(now),
            # A token has no CA that could be replaced.
            renew=next_check(int(now), due) if self.token is None else due,
            expires=int(expires.timestamp()),
            not_after=int(self.not_after.timestamp()),
            boot_time=clock.boot_time(),
            remind=int((self.login_ends_at - _REMINDER).timestamp()) if self.login_ends_at else 0,
            user=self.user,
            access_request=self.access_request or "",
            login=self.login,
            body=json.dumps(body, separators=(",", ":")) + "\n",
        )


def due_time(issued: int, expires: int) -> int:
    """Return when to renew a certificate, in seconds since the epoch.

    A certificate is renewed when a fifth of its lifetime or 5 minutes is left, whichever is longer, but never in the
    first half of the lifetime.
    """
    lifetime = timedelta(seconds=expires - issued)
    left = min(max(lifetime / 5, _MIN_LEFT), lifetime / 2)
    return expires - int(left.total_seconds())


def next_check(now: int, due: int) -> int:
    """Return when to ask the service again, about the CA or for a new certificate."""
    return min(due, now + int(_CA_CHECK.total_seconds()))
