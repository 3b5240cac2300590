"""Templates for user names and Kubernetes group names, such as `team:{group}`."""

import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from clustercert.model import JsonObject
from clustercert.model.errors import Forbidden
from clustercert.model.ids import is_user_id
from clustercert.model.kubernetes import OUR_PREFIX, SERVICE
from clustercert.model.name_patterns import Names
from clustercert.model.policy import DecisionInput
from clustercert.pki.subject import MAX_NAME
from clustercert.policy.names import SYSTEM_PREFIX, invisible_problem, name_problem

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
# On each side a colon or nothing.
_SEPARATED = re.compile(r"(?<![^:])\{[^{}]*\}(?![^:])")


@dataclass(frozen=True, slots=True)
class GroupTemplate:
    """A group name with placeholders. Each value of a placeholder produces a separate group.

    Attributes:
        groups, roles: the names in the rule's conditions. `{group}` and `{role}` take only values that match them.
    """

    text: str
    groups: Names | None = None
    roles: Names | None = None

    def __post_init__(self) -> None:
        """Raise ValueError if the template is malformed, or if values could run into its other text."""
        _check(self.text, _VALUES)
        if len(_SEPARATED.findall(self.text)) != len(_PLACEHOLDER.findall(self.text)):
            raise ValueError(
                f"{self.text}: separate a placeholder from other text by a colon, as in team:{{group}}"
            )

    def render(self, said: DecisionInput, trace: JsonObject) -> Iterator[str]:
        """Yield the names; none if a placeholder has no value. Raises Forbidden for a name that must not be issued."""
        sources = dict.fromkeys(_VALUES[name] for name in _PLACEHOLDER.findall(self.text))
        for chosen in itertools.product(*(values(self, said) for values in sources)):
            yield _fill(self.text, {name: each for values in chosen for name, each in values.items()}, trace)


@dataclass(frozen=True, slots=True)
class UserNameTemplate:
    """A user name with placeholders. It must contain the user's name or id, so that users rarely share a name."""

    text: str

    def __post_init__(self) -> None:
        """Raise ValueError if the template is malformed, or the same for all users."""
        _check(self.text, _USER_VALUES)
        if not {"user.id", "user.name"} & set(_PLACEHOLDER.findall(self.text)):
            raise ValueError(f"{self.text}: a user name needs {{user.name}} or {{user.id}}")
        fixed = _PLACEHOLDER.sub("", self.text)
        if len(fixed.encode()) >= MAX_NAME:
            raise ValueError(
                f"a user name has at most {MAX_NAME} bytes; shorten the text beside the placeholders"
            )
        for prefix in (OUR_PREFIX, SYSTEM_PREFIX):
            if self.text.casefold().startswith(prefix):
                raise ValueError(f"{self.text}: a user name can't begin with {prefix}")

    def render_name(self, said: DecisionInput, trace: JsonObject) -> str:
        """Return the name. Raises Forbidden for a name that must not be issued, such as another user's id.

        This service's own certificates, such as those for `kubernetes verify`, keep their reserved name.
        """
        if said.caller.user.id.startswith(OUR_PREFIX):
            return said.caller.user.id
        values = {name: _USER_VALUES[name](said) for name in _PLACEHOLDER.findall(self.text)}
        name = _fill(self.text, values, trace)
        if name.casefold().startswith(OUR_PREFIX):
            raise _refused(f"user names can't begin with {OUR_PREFIX}.", self.text, trace)
        if is_user_id(name.casefold()) and name != said.caller.user.id:
            raise _refused("the user name has the form of a user id.", self.text, trace)
        return name


def _check(text: str, known: Collection[str]) -> None:
    if set(_PLACEHOLDER.sub("", text)) & {"{", "}"}:
        raise ValueError(f"{text}: unmatched brace")
    for name in _PLACEHOLDER.findall(text):
        if name not in known:
            listed = ", ".join(f"{{{each}}}" for each in known)
            raise ValueError(f"{text}: unknown placeholder {{{name}}}; valid placeholders are {listed}")


def _fill(text: str, values: Mapping[str, str], trace: JsonObject) -> str:
    filled = _PLACEHOLDER.sub(lambda found: values[found[1]], text)
    used = [values[name] for name in _PLACEHOLDER.findall(text)]
    if problem := _value_problem(used) or _name_problem(filled):
        raise _refused(problem, text, trace)
    return filled


def _refused(problem: str, text: str, trace: JsonObject) -> Forbidden:
    return Forbidden(
        f"A certificate can't be issued: {problem} The template is {text}. Ask the operator.", trace=trace
    )


def is_template(group: str) -> bool:
    """Whether a group in the settings is a template rather than a name."""
    return "{" in group or "}" in group


def _value_problem(values: Iterable[str]) -> str | None:
    """Return why a value is rejected, or None. A value with a colon could produce another template's name.

    Invisible characters and other normalization forms could disguise a name. Tokens with such names are refused, too.
    """
    for value in values:
        if not value or ":" in value:
            return f"a value for a template is empty or contains a colon: {value[:64]!a}."
        if invisible_problem(value):
            return (
                f"a value for a template has invisible characters or is not in Unicode NFC: {value[:64]!a}."
            )
    return None


def _name_problem(name: str) -> str | None:
    """Return why a template must not produce this name, or None. Ignores `policy.allow_system`."""
    if name.casefold() == SERVICE:
        return f"{SERVICE} is reserved for this service."
    # A reserved prefix in upper case is rejected too.
    return name_problem(name, frozenset()) or name_problem(name.casefold(), frozenset())


Values = dict[str, str]


def _groups(template: GroupTemplate, said: DecisionInput) -> list[Values]:
    return [{"group": group.name, "group.id": group.id} for group in said.groups_matching(template.groups)]


def _roles(template: GroupTemplate, said: DecisionInput) -> list[Values]:
    roles = template.roles
    return [{"role": role} for role in said.roles if roles is None or roles.match((role,))]


def _ids(_: GroupTemplate, said: DecisionInput) -> list[Values]:
    cluster = said.cluster
    return [
        {
            "user.id": said.caller.user.id,
            "project.id": cluster.project_id,
            "cluster.name": cluster.name,
        }
    ]


# A function returns the alternatives for placeholders that belong together.
_VALUES: dict[str, Callable[[GroupTemplate, DecisionInput], list[Values]]] = {
    "group": _groups,
    "group.id": _groups,
    "role": _roles,
    "user.id": _ids,
    "project.id": _ids,
    "cluster.name": _ids,
}

_USER_VALUES: dict[str, Callable[[DecisionInput], str]] = {
    "user.id": lambda said: said.caller.user.id,
    "user.name": lambda said: said.caller.user.name,
    "user.domain": lambda said: said.caller.user.domain.name,
}
