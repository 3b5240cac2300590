"""Impersonation (kubectl's --as and --as-group), as in kube-apiserver 1.32."""

from collections.abc import Iterator, Mapping, Sequence

from support.apiserver.attributes import Attributes
from support.apiserver.identity import AUTHENTICATED, Identity

Headers = Mapping[str, Sequence[str]]
_USER, _GROUP = "impersonate-user", "impersonate-group"


def impersonations(headers: Headers) -> Iterator[Attributes]:
    """The impersonate accesses that the caller needs."""
    for header, resource in ((_USER, "users"), (_GROUP, "groups")):
        for name in headers.get(header, ()):
            yield Attributes("impersonate", version="v1", resource=resource, name=name)


def impersonated(headers: Headers) -> Identity | None:
    """The impersonated user, who has no credential id."""
    names = headers.get(_USER)
    if not names:
        return None
    groups = headers.get(_GROUP, ())
    return Identity(names[0], (*groups, *(() if AUTHENTICATED in groups else (AUTHENTICATED,))), None)
