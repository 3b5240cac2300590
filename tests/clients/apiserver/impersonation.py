"""Acting as somebody else: what kubectl's --as and --as-group ask for, as kube-apiserver 1.32 judges it."""

from collections.abc import Iterator, Mapping, Sequence

from apiserver.attributes import Attributes
from apiserver.identity import AUTHENTICATED, Identity

Headers = Mapping[str, Sequence[str]]
_USER, _GROUP = "impersonate-user", "impersonate-group"


def impersonations(headers: Headers) -> Iterator[Attributes]:
    """The accesses that the caller's own certificate must be allowed first."""
    for header, resource in ((_USER, "users"), (_GROUP, "groups")):
        for name in headers.get(header, ()):
            yield Attributes("impersonate", version="v1", resource=resource, name=name)


def impersonated(headers: Headers) -> Identity | None:
    """Whom the request counts for then: somebody without a credential id."""
    names = headers.get(_USER)
    if not names:
        return None
    groups = headers.get(_GROUP, ())
    return Identity(names[0], (*groups, *(() if AUTHENTICATED in groups else (AUTHENTICATED,))), None)
