"""Conditions in the Common Expression Language, as kube-apiserver evaluates them.

Source: https://github.com/google/cel-spec/blob/master/doc/langdef.md; Kubernetes, "Common Expression Language".
"""

import json
from collections.abc import Iterable, Sequence

from clustercert.model import CREDENTIAL_PREFIX
from clustercert.model.kubernetes import (
    CREDENTIAL_ID,
    GROUPS_OF_EVERYBODY,
    NODE_PREFIX,
    NODES,
    OUR_PREFIX,
    X509_ID,
)
from clustercert.policy.templates import SYSTEM_PREFIX, is_template, template_prefixes

_WILDCARD = "*"


def string(text: str) -> str:
    """Return a string literal. CEL lacks JSON's surrogate pairs, so non-ASCII characters are not escaped."""
    return json.dumps(text, ensure_ascii=False)


def strings(texts: Iterable[str]) -> str:
    """Return a list literal of strings."""
    return "[" + ", ".join(string(text) for text in texts) + "]"


def has_x509(extra: str) -> str:
    """Return a condition that is true if a user's extra fields contain the id of a client certificate.

    `extra` is an expression for the extra fields. The condition tests for the key first: in CEL, a missing key is an
    error, which denies the request if the failure policy is Deny.
    """
    key = string(CREDENTIAL_ID)
    return f"has({extra}) && {key} in {extra} && {extra}[{key}].exists(c, c.startsWith({string(X509_ID)}))"


def in_groups(names: Sequence[str], prefixes: Sequence[str]) -> str:
    """Return a condition that is true if the user has one of the groups, or a group with one of the prefixes."""
    return f"request.groups.exists(g, {_is_one_of('g', names, prefixes)})"


def has_credential_group(groups: str) -> str:
    """Return a condition that is true if `groups`, an expression for a list, contains a credential group."""
    return f"{groups}.exists(g, g.startsWith({string(CREDENTIAL_PREFIX)}))"


def is_exempt(patterns: Iterable[str], policy_groups: Sequence[str]) -> str:
    """Return a condition that is true for exempt users.

    `policy.templates.exemption_of` describes which users are exempt. A pattern is a name, or a prefix followed by an
    asterisk.
    """
    all_patterns = list(patterns)
    names = [pattern for pattern in all_patterns if not pattern.endswith(_WILDCARD)]
    prefixes = [pattern.removesuffix(_WILDCARD) for pattern in all_patterns if pattern.endswith(_WILDCARD)]
    if not all_patterns:
        return "false"
    of_everybody = f"g in {strings(GROUPS_OF_EVERYBODY)}"
    ours_by_prefix = [OUR_PREFIX, *template_prefixes(policy_groups)]
    our_names = [group for group in policy_groups if not is_template(group)]
    our_groups = [group for group in our_names if group not in GROUPS_OF_EVERYBODY]
    user = _is_one_of("request.user", names, prefixes)
    has_nodes = f"{string(NODES)} in request.groups"
    is_node_name = f"request.user.startsWith({string(NODE_PREFIX)})"
    is_system = f"request.user.startsWith({string(SYSTEM_PREFIX)})"
    ours = _is_one_of("request.user", our_names, ours_by_prefix)
    group = _is_one_of("g", names, prefixes)
    return (
        f"(!({ours}) && !{in_groups(our_groups, ours_by_prefix)}"
        f" && request.groups.all(g, {of_everybody} || {group})"
        f" && (request.groups.exists(g, !({of_everybody})) || {user})"
        f" && ({has_nodes} ? {is_node_name} : (!{is_system} || {user})))"
    )


def is_kubelet() -> str:
    """Return a condition that is true for kubelets, which are exempt even if their certificates are not pinned."""
    only_nodes = f"request.groups.all(g, g in {strings((*GROUPS_OF_EVERYBODY, NODES))})"
    return f"(request.user.startsWith({string(NODE_PREFIX)}) && {string(NODES)} in request.groups && {only_nodes})"


def _is_one_of(subject: str, names: Sequence[str], prefixes: Sequence[str]) -> str:
    is_named = [f"{subject} in {strings(names)}"] if names else []
    return " || ".join([*is_named, *(f"{subject}.startsWith({string(prefix)})" for prefix in prefixes)])
