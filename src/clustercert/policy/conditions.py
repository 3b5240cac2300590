"""Conditions of policy rules, and the input of a policy decision. The conditions read this input."""

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, Protocol, TypeGuard

from clustercert.model import Caller
from clustercert.model.clusters import Cluster
from clustercert.model.identity import FederatedDomain, Group, User
from clustercert.model.issuance import IssueRequest
from clustercert.model.name_patterns import Names, Values

# The caller can choose names of these kinds.
_CHOSEN = frozenset({"auth_method", "key_type"})

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(slots=True, eq=False)
class DecisionInput:
    """The input of a policy decision. Audit events contain the input, so that the decision can be computed again.

    Attributes:
        roles: the caller's roles in the cluster's project.
        key_type: the type of the CSR's key, or of the key that the service would generate.
        issuer_names: the names of OIDC issuers and of Keystone. These names are the prefixes in user and group names
            such as `ISSUER/NAME`.
        cel_context: the variables for CEL. The first expression creates the variables, and later expressions reuse
            them.
    """

    caller: Caller
    cluster: Cluster
    request: IssueRequest
    roles: tuple[str, ...]
    at: datetime
    key_type: str
    issuer_names: frozenset[str] = frozenset()
    cel_context: object | None = field(init=False, default=None)
    _named: dict[str, Values] = field(init=False, repr=False, default_factory=dict)

    def named(self, what: str) -> Values:
        """Return the names and ids of one kind, such as `role`. The kinds are the keys of `NAMED`."""
        values = self._named.get(what)
        if values is None:
            values = self._named[what] = Values(NAMED[what](self), _IDS[what](self) if what in _IDS else ())
        return values

    def groups_matching(self, names: Names | None) -> list[Group]:
        """Return the caller's groups that match one of the names, or all groups if `names` is `None`."""
        return [
            group
            for group in self.caller.groups
            if names is None or names.match(self.names_of(group), (group.id,))
        ]

    def names_of(self, party: User | Group) -> tuple[str, ...]:
        """Return the names of a user or group; see the function `names_of`."""
        return names_of(party, self.issuer_names)


def names_of(party: User | Group, issuer_names: frozenset[str]) -> tuple[str, ...]:
    """Return the names of a user or group.

    Omits the form `DOMAIN/NAME` for a built-in domain that has the same name as an issuer.
    """
    domain = party.domain
    if domain.name in issuer_names and not isinstance(domain, FederatedDomain):
        return tuple(name for name in party.qualified_names if not name.startswith(f"{domain.name}/"))
    return party.qualified_names


class ConditionFailed(Exception):
    """A condition can't be evaluated for this input. The message contains the condition's clause and the reason."""


class Condition(Protocol):
    """A condition that a decision's input must meet for a rule to match."""

    @property
    def clause(self) -> str:
        """Return the condition in words, such as `role is admin`."""

    def first_false(self, decision_input: DecisionInput) -> str | None:
        """Return the first clause that is false, for the decision trace, or None if the condition is met.

        Raises ConditionFailed.
        """

    def found(self, decision_input: DecisionInput) -> str:
        """Return the input's actual value in words, or an empty string if this value can't be described."""


@dataclass(frozen=True, slots=True)
class HasName:
    """One of the input's values of one kind matches one of the names: for example, one of the caller's roles."""

    what: str
    names: Names
    clause: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "clause", f"{self.what} is {self.names.text}")

    def first_false(self, decision_input: DecisionInput) -> str | None:
        return None if self.names.match_prepared(decision_input.named(self.what)) else self.clause

    def found(self, decision_input: DecisionInput) -> str:
        return ", ".join((_SHOWN.get(self.what) or NAMED[self.what])(decision_input)) or "none"


NAMED: Mapping[str, Callable[[DecisionInput], tuple[str, ...]]] = {
    "role": lambda decision_input: decision_input.roles,
    "group": lambda decision_input: tuple(
        name for group in decision_input.caller.groups for name in decision_input.names_of(group)
    ),
    "user": lambda decision_input: decision_input.names_of(decision_input.caller.user),
    "cluster": lambda decision_input: (decision_input.cluster.name,),
    "auth_method": lambda decision_input: (decision_input.caller.method,),
    "issuer": lambda decision_input: (decision_input.caller.issuer,),
    "key_type": lambda decision_input: (decision_input.key_type,),
}
"""Functions that return an input's names, by kind. A rule's entries are compared with these names."""

# Functions that return an input's ids, by kind. A rule's entries without wildcards are also compared with these ids.
_IDS: Mapping[str, Callable[[DecisionInput], tuple[str, ...]]] = {
    "group": lambda decision_input: tuple(group.id for group in decision_input.caller.groups),
    "user": lambda decision_input: (decision_input.caller.user.id,),
    "cluster": lambda decision_input: (decision_input.cluster.id,),
}

# Functions that return the values to display, by kind. Only kinds for which `NAMED` returns several names of one object
# are listed.
_SHOWN: Mapping[str, Callable[[DecisionInput], tuple[str, ...]]] = {
    "group": lambda decision_input: tuple(group.shown_name for group in decision_input.caller.groups),
    "user": lambda decision_input: (decision_input.caller.user.shown_name,),
}


@dataclass(frozen=True, slots=True)
class InProject:
    """The cluster belongs to one of the projects. A name without a domain must be the name of only one project."""

    names: Names

    @property
    def clause(self) -> str:
        return f"project is {self.names.text}"

    def first_false(self, decision_input: DecisionInput) -> str | None:
        """Return the clause if the condition is not met. Raises ConditionFailed if several projects have the name."""
        cluster, project = decision_input.cluster, decision_input.cluster.project_name
        names = project.qualified_names if project is not None else ()
        bare = [name for name in names if project is not None and name == project.name]
        if self.names.match([name for name in names if name not in bare], (cluster.project_id,)):
            return None
        if not self.names.match(bare):
            return self.clause
        if project is not None and not project.is_unique:
            raise ConditionFailed(
                f"several projects are named {project.name}; write the id or DOMAIN/NAME: {self.clause}"
            )
        return None

    def found(self, decision_input: DecisionInput) -> str:
        project = decision_input.cluster.project_name
        return (decision_input.cluster.project_id, *(project.qualified_names if project is not None else ()))[
            -1
        ]


@dataclass(frozen=True, slots=True)
class HasLabel:
    """The cluster has a label with one of the values."""

    label: str
    values: Names

    @property
    def clause(self) -> str:
        return f"cluster label {self.label} is {self.values.text}"

    def first_false(self, decision_input: DecisionInput) -> str | None:
        value = decision_input.cluster.labels.get(self.label)
        return None if value is not None and self.values.match((value,)) else self.clause

    def found(self, decision_input: DecisionInput) -> str:
        return decision_input.cluster.labels.get(self.label, "no such label")


@dataclass(frozen=True, slots=True)
class FromNetwork:
    """The request comes from one of the networks."""

    networks: tuple[IPNetwork, ...]

    @property
    def clause(self) -> str:
        return f"source is {' or '.join(map(str, self.networks))}"

    def first_false(self, decision_input: DecisionInput) -> str | None:
        try:
            address = ipaddress.ip_address(decision_input.caller.origin.address)
        except ValueError:
            # The address of requests from the command line is "local".
            address = None
        if address is not None:
            address = getattr(address, "ipv4_mapped", None) or address
            if any(address in network for network in self.networks):
                return None
        return self.clause

    def found(self, decision_input: DecisionInput) -> str:
        return decision_input.caller.origin.address


@dataclass(frozen=True, slots=True)
class HasCsr:
    """The request has a certificate signing request."""

    clause: ClassVar[str] = "the request has a csr"

    def first_false(self, decision_input: DecisionInput) -> str | None:
        return None if decision_input.request.public_key is not None else self.clause

    def found(self, _: DecisionInput) -> str:
        return "no csr"


@dataclass(frozen=True, slots=True)
class HasReason:
    """The request has a reason."""

    clause: ClassVar[str] = "the request has a reason"

    def first_false(self, decision_input: DecisionInput) -> str | None:
        return None if decision_input.request.reason else self.clause

    def found(self, _: DecisionInput) -> str:
        return "no reason"


def takes_role(conditions: Iterable[object], role: str) -> bool:
    """Whether this role alone meets all conditions on roles."""
    return all(each.names.match((role,)) for each in conditions if is_on_role(each))


def is_on_role(condition: object) -> TypeGuard[HasName]:
    return isinstance(condition, HasName) and condition.what == "role"


def is_chosen(condition: object) -> bool:
    """Whether the condition depends only on things that the caller can choose, such as the CSR or the reason."""
    return isinstance(condition, HasCsr | HasReason) or (
        isinstance(condition, HasName) and condition.what in _CHOSEN
    )
