"""The output of `clustercert policy explain` for people, at most 80 columns wide."""

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from clustercert.cli.output import write_out
from clustercert.cli.printable import printable
from clustercert.model.times import rfc3339

if TYPE_CHECKING:
    from clustercert.issuance.explanations import ExplainedRequest
    from clustercert.policy.rule_checks import ConditionCheck, RuleCheck

_WIDTH = 80
# The width of the column of rule names. A longer name moves the rest of its line to the right.
_MAX_NAME = 24


def show_explanation(explained: "ExplainedRequest") -> None:
    """Print the verdict, then what would be signed or what is missing, then the rules."""
    lines = [
        _verdict(explained),
        *_seen(explained),
        *_would_sign(explained),
        *_nearest(explained),
        *_rules(explained),
    ]
    write_out("".join(f"{line}\n" for line in lines))


def _verdict(explained: "ExplainedRequest") -> str:
    caller, cluster, error = explained.caller, explained.cluster, explained.explanation.error
    if error is None:
        return _wrapped(f"Allowed: {caller.user.name} gets a certificate for the cluster {cluster.name}.", "")
    message = error.message
    if not caller.roles_in(cluster.project_id):
        message = f"{caller.user.name} has no role in the project of the cluster {cluster.name}."
    return _wrapped(f"Refused ({error.status}): {message}", "")


def _seen(explained: "ExplainedRequest") -> Iterator[str]:
    if explained.seen_at is not None:
        yield _wrapped(
            f"With their groups and roles at {rfc3339(explained.seen_at)}, their last request that is recorded.",
            "",
        )


def _would_sign(explained: "ExplainedRequest") -> Iterator[str]:
    from clustercert.policy.lifetime import BACKDATE, MAX_LIFETIME_SETTING, lifetime_text

    found, grant = explained.explanation, explained.explanation.grant
    if grant is None:
        return
    issued_at = grant.not_before + BACKDATE
    by = f"rule {found.strictest.name}" if found.strictest is not None else MAX_LIFETIME_SETTING
    limit = f"{lifetime_text(found.longest)}, by {by}"
    if grant.trace["allowed_by"] == "ca":
        limit = f"{rfc3339(explained.cluster.client_ca.not_after)}, the end of the client CA"
    yield "\nWould be signed:"
    for name, value in (
        ("user name", grant.username),
        ("groups", ", ".join(explained.organizations)),
        ("not before", rfc3339(grant.not_before)),
        ("not after", f"{rfc3339(grant.not_after)} ({lifetime_text(grant.not_after - issued_at)})"),
        ("key type", found.key_type),
        ("limit", limit + (", which shortens the request" if grant.trace["truncated"] else "")),
    ):
        yield _wrapped(f"  {name:<12}{value}", " " * 14)


def _nearest(explained: "ExplainedRequest") -> Iterator[str]:
    nearest = explained.explanation.nearest
    if nearest is None:
        return
    yield _wrapped(f"\nNearest rule: {nearest.rule}. It would allow the request with:", "")
    for change in nearest.changes:
        yield _wrapped(f"  - {_with_found(change.wanted, change.found)}", " " * 4)


def _rules(explained: "ExplainedRequest") -> Iterator[str]:
    rules = explained.explanation.rules
    if not rules:
        return
    width = min(max(len(printable(each.rule.name)) for each in rules), _MAX_NAME)
    yield "\nRules:"
    for check in rules:
        mark, text = _rule(check)
        yield _wrapped(f"  {mark:<5} {check.rule.name:<{width}}  {text}", " " * (width + 10))


def _rule(check: "RuleCheck") -> tuple[str, str]:
    """Return a short word for the rule's outcome, and the reason."""
    match check.outcome:
        case "grants":
            return "yes", "grants"
        case "denies":
            conditions = "; ".join(each.wanted for each in check.conditions)
            return "DENY", f"denies, because {conditions}" if conditions else "denies every request"
        case "fails":
            return "FAILS", "; ".join(each.found for each in check.unmet if each.met is None)
        case "does_not_match":
            return "no", _missing(check)
        case "not_reached":
            return "-", f"not reached; {_missing(check) or 'would match'}"


def _missing(check: "RuleCheck") -> str:
    """Return the first condition that is not met, and the number of further ones."""
    if not check.unmet:
        return ""
    first, *more = check.unmet
    further = f"; and {len(more)} more" if more else ""
    return f"needs {_condition(first)}{further}"


def _condition(check: "ConditionCheck") -> str:
    return _with_found(check.wanted, check.found)


def _with_found(wanted: str, found: str) -> str:
    return f"{wanted} (found: {found})" if found else wanted


def _wrapped(text: str, indent: str) -> str:
    """Wrap printable text at 80 columns. Keeps line feeds and spaces at its start."""
    start = len(text) - len(text.lstrip("\n"))
    lines = textwrap.wrap(
        printable(text[start:]),
        _WIDTH,
        subsequent_indent=indent,
        break_on_hyphens=False,
        drop_whitespace=True,
        replace_whitespace=True,
    )
    return text[:start] + "\n".join(lines)
