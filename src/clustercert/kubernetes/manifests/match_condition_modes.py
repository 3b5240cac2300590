"""Finds the mode and the groups in match conditions that an earlier setup wrote.

Conditions are compared after each literal is replaced by L or S, and each sequence of tests on one name by T.
"""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache

from clustercert.kubernetes.manifests.authorization import WebhookConfig, match_conditions
from clustercert.kubernetes.manifests.cel import string
from clustercert.model.choices import WebhookMode
from clustercert.model.kubernetes import NODES, OUR_PREFIX

_STRING = r'"(?:[^"\\]|\\.)*"'
_LIST = rf"\[{_STRING}(?:, {_STRING})*\]"
_LITERAL = re.compile(f"{_LIST}|{_STRING}")
_TEST = r"(?:(?:request\.user|\bg) in L|(?:request\.user|\bg)\.startsWith\(S\))"
_TESTS = re.compile(rf"{_TEST}(?: \|\| {_TEST})*")
_OUR_GROUPS = re.compile(
    rf"request\.groups\.exists\(g, g in ({_LIST}) \|\| " + re.escape(f"g.startsWith({string(OUR_PREFIX)})")
)

_OLD_X509 = "has(request.extra) && S in request.extra && request.extraL.exists(c, c.startsWith(S))"
_OLD_OURS = "request.groups.exists(g, T)"
# Conditions written by versions before credential groups existed.
_OLD_FORMS: Mapping[str, WebhookMode] = {
    f"{_OLD_X509}\n{_OLD_OURS}": "default",
    f"{_OLD_X509}\n{_OLD_OURS} || !false": "known-only",
    f"{_OLD_X509}\n{_OLD_OURS} || !(T || request.groups.exists(g, !(T) && (T)))": "known-only",
}


def mode_of(conditions: Sequence[str]) -> WebhookMode | None:
    """Return the mode of the match conditions, or `None` if `kubernetes setup` did not write them."""
    return _modes_by_form().get(_form(conditions))


def groups_in(conditions: Sequence[str]) -> tuple[str, ...]:
    """Return the groups that the conditions name."""
    found = [match[1] for condition in conditions for match in _OUR_GROUPS.finditer(condition)]
    return tuple(dict.fromkeys(group for names in found for group in json.loads(names)))


def _form(conditions: Sequence[str]) -> str:
    text = "\n".join(conditions)
    return _TESTS.sub("T", _LITERAL.sub(lambda match: "L" if match[0].startswith("[") else "S", text))


@cache
def _modes_by_form() -> Mapping[str, WebhookMode]:
    forms = dict(_OLD_FORMS)
    modes: tuple[WebhookMode, ...] = ("default", "known-only")
    ends = (None, datetime(2000, 1, 1, tzinfo=UTC))
    for mode, until, exemptions, pins in itertools.product(modes, ends, ((), (NODES,)), (False, True)):
        webhook = WebhookConfig(
            mode=mode,
            groups=(),
            unnumbered_until=until,
            exemptions=exemptions,
            pins_components=pins,
            kubeconfig="",
        )
        forms[_form(match_conditions(webhook))] = mode
    return forms
