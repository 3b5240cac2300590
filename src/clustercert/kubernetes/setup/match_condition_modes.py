"""Finds the mode of match conditions that an earlier setup wrote.

Conditions are compared after each literal is replaced by L or S, and each sequence of tests on one name by T.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from functools import cache

from clustercert.kubernetes.setup.authorization import WebhookConfig, match_conditions
from clustercert.model.choices import WebhookMode
from clustercert.model.kubernetes import NODES

_STRING = r'"(?:[^"\\]|\\.)*"'
_LIST = rf"\[{_STRING}(?:, {_STRING})*\]"
_LITERAL = re.compile(f"{_LIST}|{_STRING}")
_TEST = r"(?:(?:request\.user|\bg) in L|(?:request\.user|\bg)\.startsWith\(S\))"
_TESTS = re.compile(rf"{_TEST}(?: \|\| {_TEST})*")


def mode_of(conditions: Sequence[str]) -> WebhookMode | None:
    """Return the mode of the match conditions, or `None` if `kubernetes setup` did not write them."""
    return _modes_by_form().get(_form(conditions))


def _form(conditions: Sequence[str]) -> str:
    text = "\n".join(conditions)
    return _TESTS.sub("T", _LITERAL.sub(lambda match: "L" if match[0].startswith("[") else "S", text))


@cache
def _modes_by_form() -> Mapping[str, WebhookMode]:
    forms: dict[str, WebhookMode] = {}
    modes: tuple[WebhookMode, ...] = ("default", "known-only")
    for mode, exemptions, pins in itertools.product(modes, ((), (NODES,)), (False, True)):
        webhook = WebhookConfig(
            mode=mode,
            groups=(),
            exemptions=exemptions,
            pins_components=pins,
            kubeconfig="",
        )
        forms[_form(match_conditions(webhook))] = mode
    return forms
