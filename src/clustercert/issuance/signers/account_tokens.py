"""Tokens of the Kubernetes service account with which a signer logs in to a cluster."""

import base64
import json
import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from clustercert.kube_api import KubeApi, segment
from clustercert.model import JsonObject
from clustercert.model.errors import InvalidRequest, RemoteFailed

MAX_TOKEN_BYTES = 16 * 1024
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_USER = re.compile(r"system:serviceaccount:([a-z0-9.-]{1,253}):([a-z0-9.-]{1,253})")
_MAX_ANSWER_BYTES = 64 * 1024
# The shortest lifetime for which kube-apiserver issues tokens.
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


def read_claims(text: str) -> JsonObject:
    """Return the claims of a token (JWT) without verifying its signature. Raises ValueError, without the token."""
    if not _is_token(text):
        raise ValueError("not a JWT")
    payload = text.split(".")[1]
    try:
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, RecursionError) as error:
        raise ValueError("the claims of a JWT can't be read") from error
    if isinstance(claims, dict):
        return claims
    raise ValueError("the claims of a JWT are not an object")


def parse_token(unverified: bytes) -> AccountToken:
    """Parse a token. Raises InvalidRequest, without the token in the message."""
    text = unverified.strip().decode("ascii", "replace")
    if not _is_token(text):
        raise InvalidRequest("signer_token: send only the token of a service account (a JWT).")
    try:
        claims: Any = read_claims(text)
        user = _USER.fullmatch(claims["sub"])
        uid = str(claims["kubernetes.io"]["serviceaccount"]["uid"])
        times = [datetime.fromtimestamp(int(claims[name]), UTC) for name in ("iat", "exp")]
    except (ValueError, KeyError, TypeError, OverflowError, OSError) as error:
        raise InvalidRequest(
            "signer_token: this is not an expiring token of a service account. Create one with `kubectl create token`."
        ) from error
    if user is None:
        raise InvalidRequest(
            "signer_token: this is not the token of a service account. Create one with `kubectl create token`."
        )
    return AccountToken(text, user[0], user[1], user[2], uid, *times)


async def request_token(api: KubeApi, namespace: str, name: str, lifetime: timedelta) -> str:
    """Request a token for a service account. Returns the API server's token, unverified and maybe empty.

    Raises ApiServerRefused, RemoteFailed or Unavailable.

    Args:
        lifetime: at least `SHORTEST`. The API server may shorten the lifetime.
    """
    answer = await api.create(
        f"/api/v1/namespaces/{segment(namespace)}/serviceaccounts/{segment(name)}/token",
        {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": math.ceil(lifetime.total_seconds())},
        },
        max_bytes=_MAX_ANSWER_BYTES,
    )
    status = answer.get("status")
    token = status.get("token") if isinstance(status, dict) else None
    return token if isinstance(token, str) else ""


async def new_token(api: KubeApi, account: AccountToken, lifetime: timedelta, now: datetime) -> AccountToken:
    """Request another token for the same account. The API server may shorten the lifetime.

    Raises ApiServerRefused, RemoteFailed or Unavailable. Also raises RemoteFailed if the new token has expired.
    """
    text = await request_token(api, account.namespace, account.name, lifetime)
    try:
        renewed = parse_token(text.encode())
    except InvalidRequest as error:
        raise RemoteFailed(
            "The cluster's API server sent no valid token for this service's account. Tell the operator to"
            " check the cluster."
        ) from error
    if (renewed.username, renewed.uid) != (account.username, account.uid):
        raise RemoteFailed(
            "The cluster's API server sent a token for another account. Tell the operator to check the cluster."
        )
    if renewed.expires_at <= now:
        raise RemoteFailed(
            "The cluster's API server sent a token that has already expired. Tell the operator to check the cluster's"
            " clock."
        )
    return renewed


def _is_token(text: str) -> bool:
    return len(text) <= MAX_TOKEN_BYTES and _TOKEN.fullmatch(text) is not None
