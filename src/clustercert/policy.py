"""(caller, cluster, ask, now) -> Grant, or a refusal that says why. Pure.

The only place beside `web` that knows days: elsewhere a lifetime is a `timedelta`.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from clustercert.certificate import MAX_NAME
from clustercert.errors import ClustercertError, Forbidden, InvalidRequest, NotFound, Unavailable
from clustercert.model import CREDENTIAL_PREFIX, Ask, Caller, Cluster, Grant, JsonObject, PolicyRule

# CCE API reference, cce_02_0248: 1 to 1825 days, -1 means the longest.
MAX_DAYS = 1825
LONGEST = -1
MAX_LIFETIME = timedelta(days=MAX_DAYS)
# The newer text of the same API: expire_at is 15 minutes to 5 years ahead.
MIN_LIFETIME = timedelta(minutes=15)
# As kube-controller-manager does, for API servers whose clock is behind: kube-apiserver has no leeway.
# Source: kubernetes/pkg/controller/certificates/authority/policies.go.
BACKDATE = timedelta(minutes=5)
# kube-apiserver acts on these names itself; a member of system:masters passes every authorizer.
SYSTEM_PREFIX = "system:"

# The two roles that decide about more than one's own certificates: in a project, and in the whole service.
ADMIN = "admin"
OPERATOR = "operator"

# Unicode Standard Annex 9: the marks, embeddings, overrides and isolates that reorder what a reader sees.
_BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True, slots=True)
class Policy:
    """Which role gives which Kubernetes groups, for how long.

    Attributes:
        rules: the first one whose role the caller has in the project wins.
        allowed_system_names: users and groups that begin with `system:` and may be issued all the same.
    """

    rules: tuple[PolicyRule, ...]
    allowed_system_names: frozenset[str] = frozenset()

    @property
    def groups(self) -> tuple[str, ...]:
        """The Kubernetes groups that the rules give, each once, in the rules' order."""
        return tuple(dict.fromkeys(group for rule in self.rules for group in rule.groups))

    def decide(self, caller: Caller, cluster: Cluster, ask: Ask, now: datetime) -> Grant:
        """What the caller gets, and how that came about (`Grant.trace`, or the refusal's).

        Raises InvalidRequest, Forbidden naming the limit, or Unavailable where the client CA is past its end.
        """
        trace: JsonObject = {}
        try:
            return self._decide(caller, cluster, ask, now, trace)
        except ClustercertError as refusal:
            refusal.trace = trace
            raise

    def _decide(self, caller: Caller, cluster: Cluster, ask: Ask, now: datetime, trace: JsonObject) -> Grant:
        """As `decide`; what is found on the way goes into the trace, so that a refusal has it as well."""
        roles = member_roles(caller, cluster.project_id)
        trace["roles"] = list(roles)
        rule = self._rule(roles, trace)
        self._check_names(caller.user.id, rule.groups)
        issued_at = now.replace(microsecond=0)
        ca_not_after = cluster.client_ca.not_after
        longest = min(issued_at + rule.max_lifetime, ca_not_after)
        trace["allowed_until"] = _text(longest)
        trace["allowed_by"] = "rule" if longest < ca_not_after else "ca"
        if longest <= issued_at:
            raise Unavailable(
                "The cluster's client CA has expired. Ask the operator to rotate it.", retry_after=3600
            )
        wished = _wished_end(ask, issued_at)
        clips = ask.clip or (ask.expire_at is None and ask.duration == LONGEST)
        trace["wished_until"] = _text(wished)
        trace["clipped"] = wished > longest and clips
        if wished > longest and not clips:
            limit = (
                f"the rule for role {rule.role} allows at most {_words(rule.max_lifetime)}"
                if longest < ca_not_after
                else f"the cluster's client CA ends at {ca_not_after:%Y-%m-%d %H:%M:%S} UTC"
            )
            raise Forbidden(f"The wished lifetime is too long: {limit}. Ask for less, or for duration -1.")
        return Grant(
            rule=rule.role,
            username=caller.user.id,
            groups=rule.groups,
            not_before=issued_at - BACKDATE,
            not_after=min(wished, longest),
            trace=trace,
        )

    def _rule(self, roles: tuple[str, ...], trace: JsonObject) -> PolicyRule:
        passed_over: list[str] = []
        trace["passed_over"] = passed_over
        for rule in self.rules:
            if rule.role in roles:
                trace["rule"] = rule.role
                trace["groups"] = list(rule.groups)
                return rule
            passed_over.append(rule.role)
        wanted = ", ".join(rule.role for rule in self.rules) or "none at all"
        raise Forbidden(
            f"No rule gives your role in this project ({', '.join(roles)}) access to its clusters."
            f" Roles with access: {wanted}."
        )

    def _check_names(self, username: str, groups: Iterable[str]) -> None:
        for name in (username, *groups):
            if problem := self.name_problem(name):
                raise Forbidden(f"A certificate can't be issued: {problem} Ask the operator.")

    def name_problem(self, name: str) -> str | None:
        """A sentence on why a user or group name can't stand in a certificate, or None."""
        if not is_plain_text(name):
            return "a user or group name has a control, bidirectional or unpaired surrogate character."
        if not 1 <= len(name.encode()) <= MAX_NAME:
            return (
                f"a user or group name has 1 to {MAX_NAME} bytes in UTF-8, this one has {len(name.encode())}."
            )
        if name.casefold().startswith(CREDENTIAL_PREFIX):
            return (
                f"{name} begins with {CREDENTIAL_PREFIX}, which only clustercert's own credential groups do."
            )
        if name.startswith(SYSTEM_PREFIX) and name not in self.allowed_system_names:
            return f"{name} is reserved by Kubernetes and not allowed by the settings (policy.allow_system)."
        return None


def member_roles(caller: Caller, project_id: str) -> tuple[str, ...]:
    """The caller's roles in a project. Raises NotFound where there are none: such a project does not exist."""
    roles = caller.roles_in(project_id)
    if not roles:
        raise NotFound
    return roles


def operates(caller: Caller) -> bool:
    """Whether the caller is an operator of the service, which reaches every project."""
    return OPERATOR in caller.service_roles


def administers(caller: Caller, project_id: str) -> bool:
    """Whether the caller may decide about other people's certificates in a project: its admins, and operators."""
    return ADMIN in caller.roles_in(project_id) or operates(caller)


def require_reach(caller: Caller, project_id: str) -> None:
    """Raises NotFound unless the caller is an operator or has a role in the project."""
    if not operates(caller):
        member_roles(caller, project_id)
    elif not project_id.isprintable():
        # What is no text to PostgreSQL is no id either.
        raise NotFound


@functools.lru_cache(maxsize=4096)
def is_plain_text(text: str) -> bool:
    """Whether text is free of control characters, line separators, bidirectional controls and lone surrogates."""
    return not any(
        character in _BIDIRECTIONAL or unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}
        for character in text
    )


# Those of a second are few, however many ask.
@functools.lru_cache(maxsize=1024)
def _text(time: datetime) -> str:
    return time.isoformat()


def _wished_end(ask: Ask, issued_at: datetime) -> datetime:
    if ask.expire_at is not None:
        if not MIN_LIFETIME <= ask.expire_at - issued_at <= MAX_LIFETIME:
            raise InvalidRequest(
                f"expire_at: must be 15 minutes to 5 years ({MAX_DAYS} days) ahead;"
                f" the time is {issued_at:%Y-%m-%d %H:%M:%S} +0000 UTC."
            )
        return ask.expire_at
    if ask.duration is None:
        raise InvalidRequest("Send duration (whole days) or expire_at.")
    return issued_at + (MAX_LIFETIME if ask.duration == LONGEST else timedelta(days=ask.duration))


def parse_lifetime(text: str) -> timedelta:
    """`90s`, `15m`, `8h`, `30d`, `2w`, or several of them as in `1h30m`. Raises ValueError."""
    parts = re.findall(r"(\d{1,9})([smhdw])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        raise ValueError(f"{text!r} is no lifetime; write it like 90s, 15m, 8h, 30d or 1h30m")
    return sum((timedelta(**{_UNITS[unit]: int(n)}) for n, unit in parts), timedelta())


def _words(lifetime: timedelta) -> str:
    """A lifetime for people: the largest unit that divides it."""
    seconds = int(lifetime.total_seconds())
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds % size == 0:
            count = seconds // size
            return f"{count} {unit}{'s' if count != 1 else ''}"
    return f"{seconds} seconds"
