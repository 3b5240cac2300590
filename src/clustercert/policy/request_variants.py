"""The different requests that a user could send, as far as the conditions of rules can tell them apart."""

import contextlib
import itertools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import get_args

from clustercert.model import Caller, IssueRequest, KeyType, Origin
from clustercert.model.errors import InvalidRequest
from clustercert.model.identity import BUILT_IN
from clustercert.model.policy import Condition, FromNetwork, HasCsr, HasName, HasReason, IPNetwork
from clustercert.model.requests import KEYSTONE_METHODS
from clustercert.pki.stand_in_keys import stand_in_key
from clustercert.policy.expressions import Expression
from clustercert.policy.lifetime import MOST_DAYS

# Rules can name any number of networks, so this bounds the work for one user.
MAX_VARIANTS = 5000

_ON_REQUEST = frozenset({"auth_method", "key_type"})
# How users of the built-in identity log in.
_BUILT_IN_METHODS = ("token", "access_key")
# A source that matches no network.
_ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True)
class RequestVariant:
    """How a user logs in, from where, and what they request: always the longest lifetime."""

    auth_method: str
    source: str
    request: IssueRequest

    def sent_by(self, caller: Caller) -> Caller:
        return replace(caller, method=self.auth_method, origin=Origin(self.source, caller.origin.request_id))


def depends_on_request(condition: Condition) -> bool:
    """Whether the condition can differ between requests of one user for one cluster."""
    if isinstance(condition, HasName):
        return condition.what in _ON_REQUEST
    if isinstance(condition, Expression):
        return condition.depends_on_request
    return isinstance(condition, HasCsr | HasReason | FromNetwork)


def request_variants(conditions: Iterable[Condition], caller: Caller) -> Iterator[RequestVariant]:
    """Yield requests that the conditions can tell apart, beginning with those without options.

    Raises InvalidRequest if there are more than `MAX_VARIANTS`.
    """
    given = tuple(conditions)
    named = {condition.what for condition in given if isinstance(condition, HasName)}
    methods = _methods(caller)
    keys: tuple[str | None, ...] = (None,)
    if "key_type" in named:
        keys = (None, *get_args(KeyType))
    elif any(isinstance(condition, HasCsr) for condition in given):
        keys = (None, "ec-p256")
    reasons = (None, "x") if any(isinstance(condition, HasReason) for condition in given) else (None,)
    found = itertools.product(
        methods if "auth_method" in named else methods[:1], _sources(given), keys, reasons
    )
    for number, (method, source, key_type, reason) in enumerate(found):
        if number == MAX_VARIANTS:
            raise InvalidRequest(
                f"The rules for one user can tell more than {MAX_VARIANTS} requests apart."
                " Write fewer networks in rules that match the same users."
            )
        key = None if key_type is None else stand_in_key(key_type)
        request = IssueRequest(duration=MOST_DAYS, truncate=True, public_key=key, reason=reason)
        yield RequestVariant(method, source, request)


def _methods(caller: Caller) -> tuple[str, ...]:
    if caller.issuer == BUILT_IN:
        return _BUILT_IN_METHODS
    return KEYSTONE_METHODS if caller.method in KEYSTONE_METHODS else (caller.method,)


def _sources(conditions: Collection[Condition]) -> tuple[str, ...]:
    """Return an address outside all networks, and for each network its first address and the one after its last.

    The networks divide the addresses into ranges, and each range begins at one of these.
    """
    networks = [
        network
        for condition in conditions
        if isinstance(condition, FromNetwork)
        for network in condition.networks
    ]
    starts = (str(start) for network in networks for start in _starts(network))
    return (_ELSEWHERE, *dict.fromkeys(starts))


def _starts(network: IPNetwork) -> Iterator[IPv4Address | IPv6Address]:
    yield network.network_address
    # The last address of all has none after it.
    with contextlib.suppress(AddressValueError):
        yield network.broadcast_address + 1
