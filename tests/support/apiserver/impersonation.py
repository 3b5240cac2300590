"""Impersonation (kubectl's --as and --as-group), as in kube-apiserver 1.32.

Source: staging/src/k8s.io/apiserver/pkg/endpoints/filters/impersonation.go. Measured: an impersonated service
account has no credential id.
"""

from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import unquote

from support.apiserver.attributes import Attributes
from support.apiserver.identity import AUTHENTICATED, CREDENTIAL_ID, Identity

Headers = Mapping[str, Sequence[str]]
_USER, _GROUP, _EXTRA = "impersonate-user", "impersonate-group", "impersonate-extra-"
ACCOUNT_PREFIX = "system:serviceaccount:"


def impersonations(headers: Headers) -> Iterator[Attributes]:
    """The impersonate accesses that the caller needs."""
    for name in headers.get(_USER, ()):
        if account := service_account(name):
            namespace, of_account = account
            yield Attributes(
                "impersonate", version="v1", namespace=namespace, resource="serviceaccounts", name=of_account
            )
        else:
            yield Attributes("impersonate", version="v1", resource="users", name=name)
    for name in headers.get(_GROUP, ()):
        yield Attributes("impersonate", version="v1", resource="groups", name=name)
    for key, values in _extra(headers).items():
        for value in values:
            yield Attributes(
                "impersonate",
                group="authentication.k8s.io",
                version="v1",
                resource="userextras",
                subresource=key,
                name=value,
            )


def impersonated(headers: Headers) -> Identity | None:
    """The impersonated user, who has no credential id."""
    names = headers.get(_USER)
    if not names:
        return None
    groups = tuple(headers.get(_GROUP, ()))
    if not groups and (account := service_account(names[0])):
        groups = account_groups(account[0])
    [credential_id, *_] = _extra(headers).get(CREDENTIAL_ID, [None])
    return Identity(
        names[0], (*groups, *(() if AUTHENTICATED in groups else (AUTHENTICATED,))), credential_id
    )


def service_account(username: str) -> tuple[str, str] | None:
    """Namespace and name in the user name of a service account, or None for another user."""
    namespace, colon, name = username.removeprefix(ACCOUNT_PREFIX).partition(":")
    return (namespace, name) if username.startswith(ACCOUNT_PREFIX) and colon else None


def account_groups(namespace: str) -> tuple[str, ...]:
    """The groups of every service account of a namespace."""
    return ("system:serviceaccounts", f"system:serviceaccounts:{namespace}")


def _extra(headers: Headers) -> Mapping[str, Sequence[str]]:
    return {
        unquote(header.removeprefix(_EXTRA)): values
        for header, values in headers.items()
        if header.startswith(_EXTRA)
    }
