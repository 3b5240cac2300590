"""Tokens of the Kubernetes service account with which a signer logs in to a cluster."""

import base64
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from clustercert.kube_api import KubeApi, segment
from clustercert.model.errors import InvalidRequest, RemoteFailed

MAX_TOKEN_BYTES = 16 * 1024
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_USER = re.compile(r"system:serviceaccount:([a-z0-9.-]{1,253}):([a-z0-9.-]{1,253})")
_MAX_ANSWER_BYTES = 64 * 1024
# kube-apiserver issues no tokens for a shorter time.
SHORTEST = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class AccountToken:
    """A token of a service account. Only the API server verifies the signature.

    Attributes:
        username: the account's user name in the cluster.
        uid: the account's uid.
    """

    text: str = field(repr=False)
    username: str
    namespace: str
    name: str
    uid: str
    issued_at: datetime
    expires_at: datetime

    @property
    def renew_at(self) -> datetime:
        """When half of the lifetime is over."""
        return self.issued_at + (self.expires_at - self.issued_at) / 2


def parse_token(unverified: bytes) -> AccountToken:
    """Parse a token. Raises InvalidRequest, without the token in the message."""
    text = unverified.strip().decode("ascii", "replace")
    if len(text) > MAX_TOKEN_BYTES or not _TOKEN.fullmatch(text):
        raise InvalidRequest(
            "signer_token: it must be the token of a service account (a JWT), and nothing else."
        )
    try:
        payload = text.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        user = _USER.fullmatch(claims["sub"])
        uid = str(claims["kubernetes.io"]["serviceaccount"]["uid"])
        times = [datetime.fromtimestamp(int(claims[name]), UTC) for name in ("iat", "exp")]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidRequest(
            "signer_token: this is not a token of a service account that expires. Create one with `kubectl create"
            " token`."
        ) from error
    if user is None:
        raise InvalidRequest("signer_token: this is not the token of a service account.")
    return AccountToken(text, user[0], user[1], user[2], uid, *times)


async def new_token(api: KubeApi, account: AccountToken, lifetime: timedelta) -> AccountToken:
    """Request another token for the same account. The API server may shorten the lifetime.

    Raises ApiServerRefused, RemoteFailed or Unavailable.
    """
    path = f"/api/v1/namespaces/{segment(account.namespace)}/serviceaccounts/{segment(account.name)}/token"
    answer = await api.create(
        path,
        {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": int(lifetime.total_seconds())},
        },
        max_bytes=_MAX_ANSWER_BYTES,
    )
    status = answer.get("status")
    try:
        renewed = parse_token(str(status.get("token") if isinstance(status, dict) else "").encode())
    except InvalidRequest as error:
        raise RemoteFailed(
            "The cluster's API server sent no valid token for this service's account. Tell the operator."
        ) from error
    if (renewed.username, renewed.uid) != (account.username, account.uid):
        raise RemoteFailed(
            "The cluster's API server sent a token for another account. Tell the operator to check the cluster."
        )
    return renewed
