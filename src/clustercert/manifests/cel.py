"""Conditions in the Common Expression Language, as kube-apiserver evaluates them.

Source: https://github.com/google/cel-spec/blob/master/doc/langdef.md; Kubernetes, "Common Expression Language".
"""

import json
from collections.abc import Iterable, Sequence

from clustercert.manifests import CREDENTIAL_ID, GROUPS_OF_EVERYBODY, OUR_PREFIX, X509_ID
from clustercert.model import CREDENTIAL_PREFIX

_ANYTHING = "*"


def string(text: str) -> str:
    """A string literal. JSON's escapes are CEL's too, surrogate pairs aside, so what is not ASCII stands as it is."""
    return json.dumps(text, ensure_ascii=False)


def strings(texts: Iterable[str]) -> str:
    """A list of string literals."""
    return "[" + ", ".join(string(text) for text in texts) + "]"


def has_x509(extra: str) -> str:
    """Whether the extra fields, an expression, say that a client certificate was shown.

    A key that isn't there is an error in CEL, and an error is a denial where the failure policy is Deny; so it is
    asked for before it is read.
    """
    key = string(CREDENTIAL_ID)
    return f"has({extra}) && {key} in {extra} && {extra}[{key}].exists(c, c.startsWith({string(X509_ID)}))"


def in_groups(names: Sequence[str], prefixes: Sequence[str] = ()) -> str:
    """Whether somebody is in one of the groups, or in one whose name begins so."""
    return _some_group(
        "g", [*_names("g", names), *(f"g.startsWith({string(prefix)})" for prefix in prefixes)]
    )


def has_credential_group(groups: str) -> str:
    """Whether the groups, an expression, say that a certificate with a credential group was shown."""
    return f"{groups}.exists(g, g.startsWith({string(CREDENTIAL_PREFIX)}))"


def exempt(patterns: Iterable[str], policy_groups: Sequence[str]) -> str:
    """Whether each group that not everybody is in matches a pattern, or the user's name where there is no such group.

    A pattern ends in an asterisk, which stands for anything, or is a name. Names and groups of ours are never exempt.
    `webhook.exemptions` has the same rule.
    """
    sorted_out = list(patterns)
    names = [pattern for pattern in sorted_out if not pattern.endswith(_ANYTHING)]
    prefixes = [pattern.removesuffix(_ANYTHING) for pattern in sorted_out if pattern.endswith(_ANYTHING)]
    if not sorted_out:
        return "false"
    of_everybody = f"g in {strings(GROUPS_OF_EVERYBODY)}"
    our_groups = [group for group in policy_groups if group not in GROUPS_OF_EVERYBODY]
    user = _either("request.user", names, prefixes)
    ours = _either("request.user", policy_groups, [OUR_PREFIX])
    group = _either("g", names, prefixes)
    return (
        f"(!({ours}) && !{in_groups(our_groups, [OUR_PREFIX])}"
        f" && request.groups.all(g, {of_everybody} || {group})"
        f" && (request.groups.exists(g, !({of_everybody})) || {user}))"
    )


def _either(subject: str, names: Sequence[str], prefixes: Sequence[str]) -> str:
    tests = [*_names(subject, names), *(f"{subject}.startsWith({string(prefix)})" for prefix in prefixes)]
    return " || ".join(tests)


def _names(subject: str, names: Sequence[str]) -> list[str]:
    return [f"{subject} in {strings(names)}"] if names else []


def _some_group(variable: str, tests: Sequence[str]) -> str:
    return f"request.groups.exists({variable}, {' || '.join(tests)})" if tests else "false"
