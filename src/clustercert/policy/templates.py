"""Templates of user and group names in certificates, and the names that they may produce."""

import functools
import itertools
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from clustercert.model import CREDENTIAL_PREFIX, ClusterOptions, JsonObject
from clustercert.model.errors import Forbidden
from clustercert.model.ids import is_user_id
from clustercert.model.kubernetes import GROUPS_OF_EVERYBODY, NODE_PREFIX, NODES, OUR_PREFIX, SERVICE
from clustercert.model.name_patterns import Names
from clustercert.pki.leaf import MAX_NAME
from clustercert.policy.conditions import DecisionInput

# kube-apiserver treats names with the prefix `system:` specially: it authorizes every request from a member of
# system:masters.
SYSTEM_PREFIX = "system:"

# Unicode Standard Annex 9: marks, embeddings, overrides and isolates. These characters change the order of displayed
# text.
_BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@functools.lru_cache(maxsize=4096)
def is_plain_text(text: str) -> bool:
    """Whether text is free of control characters, line separators, bidirectional controls and lone surrogates."""
    return not any(
        character in _BIDIRECTIONAL or unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}
        for character in text
    )


MAX_REASON = 512


def reason_problem(reason: str) -> str | None:
    """Return why a reason that a user gives can't be recorded, or None if it can."""
    if len(reason) > MAX_REASON or not is_plain_text(reason):
        return f"must have at most {MAX_REASON} characters, without control or bidirectional characters"
    return None


def invisible_problem(text: str) -> str | None:
    """Return why a name could look like another name, or None."""
    # `isprintable` excludes control, format (including bidirectional), surrogate and private-use characters.
    if not text.isprintable() or text != text.strip():
        return "has invisible characters, or a space at its start or end"
    if not unicodedata.is_normalized("NFC", text):
        return "is not in Unicode NFC"
    return None


@functools.lru_cache(maxsize=4096)
def name_problem(name: str, allowed_system_names: frozenset[str]) -> str | None:
    """Return a sentence that says why a certificate can't contain this user or group name, or None if it can."""
    if not is_plain_text(name):
        return "a user or group name has a control, bidirectional or unpaired surrogate character."
    if not 1 <= len(name.encode()) <= MAX_NAME:
        return f"a user or group name must have 1 to {MAX_NAME} bytes in UTF-8; this one has {len(name.encode())}."
    if name.casefold().startswith(CREDENTIAL_PREFIX):
        return (
            f"{name} begins with {CREDENTIAL_PREFIX}, which is reserved for credential groups of clustercert."
        )
    if name.startswith(SYSTEM_PREFIX) and name not in allowed_system_names:
        return f"{name} is reserved by Kubernetes and not allowed by the settings (policy.allow_system)."
    return None


_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
# A placeholder that has a colon, or the start or end of the text, on each side.
_SEPARATED = re.compile(r"(?<![^:])\{[^{}]*\}(?![^:])")


@dataclass(frozen=True, slots=True)
class GroupTemplate:
    """A group name with placeholders. Each value of a placeholder produces a separate group.

    Attributes:
        groups, roles: the names in the rule's conditions. `{group}` and `{role}` take only values that match these
            names.
    """

    text: str
    groups: Names | None = None
    roles: Names | None = None

    def __post_init__(self) -> None:
        """Raise ValueError if the template is malformed, or if no colon separates a placeholder from other text."""
        _check(self.text, _VALUES)
        if len(_SEPARATED.findall(self.text)) != len(_PLACEHOLDER.findall(self.text)):
            raise ValueError(
                f"{self.text}: separate a placeholder from other text by a colon, as in team:{{group}}"
            )

    def render(self, decision_input: DecisionInput, trace: JsonObject) -> Iterator[str]:
        """Yield the group names. Yields nothing if a placeholder has no value. Raises Forbidden for a reserved name."""
        sources = dict.fromkeys(_VALUES[name] for name in _PLACEHOLDER.findall(self.text))
        for chosen in itertools.product(*(values(self, decision_input) for values in sources)):
            yield _fill(self.text, {name: each for values in chosen for name, each in values.items()}, trace)


@dataclass(frozen=True, slots=True)
class UserNameTemplate:
    """A user name with placeholders.

    The template must contain the user's name or id, so that two users rarely get the same name.
    """

    text: str

    def __post_init__(self) -> None:
        """Raise ValueError if the template is malformed, or gives all users the same name."""
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

    def render_name(self, decision_input: DecisionInput, trace: JsonObject) -> str:
        """Return the name. Raises Forbidden for a name that must not be issued, such as another user's id.

        This service's own certificates, such as the certificates for `kubernetes verify`, keep their reserved names.
        """
        if decision_input.caller.user.id.startswith(OUR_PREFIX):
            return decision_input.caller.user.id
        values = {name: _USER_VALUES[name](decision_input) for name in _PLACEHOLDER.findall(self.text)}
        name = _fill(self.text, values, trace)
        if name.casefold().startswith(OUR_PREFIX):
            raise _refused(f"user names can't begin with {OUR_PREFIX}.", self.text, trace)
        if is_user_id(name.casefold()) and name != decision_input.caller.user.id:
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
    """Return why a placeholder's value is rejected, or None.

    A value with a colon could produce a name that belongs to a different template. Invisible characters and other
    normalization forms could disguise a name. Authentication also refuses tokens that contain disguised names.
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
    # Also reject reserved prefixes in upper case.
    return name_problem(name, frozenset()) or name_problem(name.casefold(), frozenset())


Values = dict[str, str]


def _groups(template: GroupTemplate, decision_input: DecisionInput) -> list[Values]:
    return [
        {"group": group.name, "group.id": group.id}
        for group in decision_input.groups_matching(template.groups)
    ]


def _roles(template: GroupTemplate, decision_input: DecisionInput) -> list[Values]:
    roles = template.roles
    return [{"role": role} for role in decision_input.roles if roles is None or roles.match((role,))]


def _ids(_: GroupTemplate, decision_input: DecisionInput) -> list[Values]:
    cluster = decision_input.cluster
    return [
        {
            "user.id": decision_input.caller.user.id,
            "project.id": cluster.project_id,
            "cluster.name": cluster.name,
        }
    ]


# Functions that return the values of each placeholder. Placeholders with the same function get values from the same
# object, such as one group.
_VALUES: dict[str, Callable[[GroupTemplate, DecisionInput], list[Values]]] = {
    "group": _groups,
    "group.id": _groups,
    "role": _roles,
    "user.id": _ids,
    "project.id": _ids,
    "cluster.name": _ids,
}

_USER_VALUES: dict[str, Callable[[DecisionInput], str]] = {
    "user.id": lambda decision_input: decision_input.caller.user.id,
    "user.name": lambda decision_input: decision_input.caller.user.name,
    "user.domain": lambda decision_input: decision_input.caller.user.domain.name,
}


def template_prefixes(policy_groups: Iterable[str]) -> tuple[str, ...]:
    """Return the fixed prefixes of templates: the text up to the last colon before the first placeholder.

    Omits templates without such a prefix, and the prefix `system:`, because templates never produce names with this
    prefix.
    """
    prefixes = {group[: group.find("{")].rpartition(":")[0] for group in policy_groups if is_template(group)}
    return tuple(sorted(f"{prefix}:" for prefix in prefixes if prefix and not _is_system(f"{prefix}:")))


def exempted_template(pattern: str, policy_groups: Iterable[str]) -> str | None:
    """Return a template that begins with a placeholder and can produce names that the pattern exempts, or None."""
    if _is_system(pattern):
        return None
    for group in unprefixed_templates(policy_groups):
        colons = group.count(":")
        # Values of placeholders contain no colon, so names have as many colons as the template.
        fits = pattern.count(":") <= colons if pattern.endswith("*") else pattern.count(":") == colons
        if fits:
            return group
    return None


def unprefixed_templates(policy_groups: Iterable[str]) -> list[str]:
    """Return the templates that begin with a placeholder.

    Certificates from other issuers can contain the names that these templates produce.
    """
    templates = sorted(filter(is_template, policy_groups))
    return [group for group in templates if not template_prefixes([group]) and not _is_system(group)]


def _is_system(name: str) -> bool:
    return name.casefold().startswith(SYSTEM_PREFIX)


Exemption = Literal["node", "component"]
"""Why a certificate is exempt: it belongs to a kubelet (`node`), or the operator exempted its names (`component`)."""


def exemption_of(
    username: str, presented: Collection[str], options: ClusterOptions, policy_groups: Collection[str]
) -> Exemption | None:
    """Return the exemption of a certificate if all its groups match the cluster's patterns.

    If the certificate has no groups, the user name must match.

    Ignores groups that every caller has. A user name with the prefix `system:` must match too, because Kubernetes binds
    rights to such users. For kubelets, it is enough that the group `system:nodes` matches. The group `system:nodes`
    exempts only kubelets.

    User names and groups are never exempt if they are in `policy_groups`, if they have the prefix of a template in
    `policy_groups`, or if they begin with `clustercert:`.
    """
    groups = {group for group in presented if group not in GROUPS_OF_EVERYBODY}
    is_kubelet = username.startswith(NODE_PREFIX) and NODES in groups
    if NODES in groups and not is_kubelet:
        return None
    needs_name = not groups or (username.startswith(SYSTEM_PREFIX) and not is_kubelet)
    names = [*groups, username] if needs_name else [*groups]
    prefixes = (OUR_PREFIX, *template_prefixes(policy_groups))
    # Skip templates: the text of a template is not the name of a group, even if a user or group is named like the text.
    ours = [group for group in policy_groups if not is_template(group)]
    if any(name.startswith(prefixes) or name in ours for name in (username, *groups)):
        return None
    if not all(_matches(name, options.exemptions) for name in names):
        return None
    return "node" if groups == {NODES} else "component"


def is_exempt(
    username: str,
    presented: Collection[str],
    fingerprints: Collection[str],
    options: ClusterOptions,
    policy_groups: Collection[str],
) -> bool:
    """Whether the mode `known-only` accepts a certificate as exempt.

    If the cluster pins components, the certificate of a component must also be pinned.

    Args:
        fingerprints: the certificate's fingerprint, in lower-case hex; several fingerprints if the presented
            certificate could be any one of several certificates.
    """
    exemption = exemption_of(username, presented, options, policy_groups)
    if exemption == "component" and options.pin_components:
        return not set(options.pins).isdisjoint(fingerprints)
    return exemption is not None


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether the name matches a pattern. An asterisk is a wildcard only at the end of a pattern."""
    return any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern for pattern in patterns
    )
