"""Texts of `policy explain` and `policy replay`."""

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from clustercert.cli.output import Output, document, paragraph, print_note, show_list, write_out
from clustercert.cli.printable import printable
from clustercert.model.times import rfc3339

if TYPE_CHECKING:
    from clustercert.issuance.explanations import ExplainedRequest
    from clustercert.model import JsonObject
    from clustercert.policy.explanation import ConditionCheck, RuleCheck
    from clustercert.policy.replay import Change, DecisionFilter, Example, Outcome, Replay, Tally


_WIDTH = 80
# The maximum width of the column with rule names. A longer name moves the rest of its line to the right.
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
            f"Decided with the groups and roles that the user had at {rfc3339(explained.seen_at)}, the time of the "
            "user's last recorded request.",
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
        ("limit", limit + (", which shortens the requested lifetime" if grant.trace["truncated"] else "")),
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
    """Return the first condition that is not met, and the number of further unmet conditions."""
    if not check.unmet:
        return ""
    first, *more = check.unmet
    further = f"; and {len(more)} more" if more else ""
    return f"needs {_condition(first)}{further}"


def _condition(check: "ConditionCheck") -> str:
    return _with_found(check.wanted, check.found)


def _with_found(condition: str, found: str) -> str:
    return f"{condition} (found: {found})" if found else condition


def _wrapped(text: str, indent: str) -> str:
    """Wrap printable text at 80 columns. Keeps line feeds and spaces at the start of the text."""
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


# The maximum number of names listed in one line.
MAX_LISTED = 10


def show_replay(replay: "Replay", decision_filter: "DecisionFilter", output: Output) -> None:
    """Print the result of a replay.

    JSON and YAML contain the names of all users, clusters and rules. The text after a table contains only the most
    frequent names.
    """
    if output in (Output.JSON, Output.YAML):
        write_out(document(_document(replay, decision_filter), output))
        return
    rows = [
        {
            "change": _words(change),
            "decisions": tally.decisions,
            "users": len(tally.users),
            "clusters": len(tally.clusters),
        }
        for change, tally in replay.changes.items()
    ]
    rows.append({"change": "unchanged", "decisions": replay.unchanged, "users": None, "clusters": None})
    show_list(rows, output, columns=("change", "decisions", "users", "clusters"), name="change")
    if output is not Output.TABLE:
        return
    for change, tally in replay.changes.items():
        if tally.decisions:
            _show_tally(change, tally)
    print_note(
        f"{replay.decisions} decisions were replayed; {replay.decisions - replay.unchanged} would differ."
    )
    for reason, count in replay.not_replayable.most_common():
        print_note(f"Not replayable: {count}, because {reason}.")


def _show_tally(change: "Change", tally: "Tally") -> None:
    write_out(f"\n{_words(change)}: {tally.decisions}\n")
    paragraph(f"users: {_listed(_by_name(tally.users))}")
    paragraph(f"clusters: {_listed(_by_name(tally.clusters))}")
    paragraph(f"rules then: {_listed(tally.recorded_rules)}")
    paragraph(f"rules now: {_listed(tally.rules)}")
    for example in tally.examples[:1]:
        decision = example.decision
        paragraph(f"for example: request {decision.caller.origin.request_id} at {rfc3339(decision.at)}")
        paragraph(f"  then: {_in_words(decision.outcome)}")
        paragraph(f"  now: {_in_words(example.outcome)}")


def _listed(counted: Counter[str]) -> str:
    named = [f"{name} ({count})" for name, count in counted.most_common(MAX_LISTED)]
    if (rest := len(counted) - MAX_LISTED) > 0:
        named.append(f"and {rest} more")
    return ", ".join(named) or "none"


def _by_name(counted: Counter[tuple[str, str]]) -> Counter[str]:
    """Return the counts by name. Appends the id to a name that several have, such as a deleted user and a new user."""
    names = Counter(name for _, name in counted)
    return Counter(
        {name if names[name] == 1 else f"{name} {own_id}": n for (own_id, name), n in counted.items()}
    )


def _in_words(outcome: "Outcome") -> str:
    if outcome.not_after is None:
        return f"refused: {outcome.message}"
    groups = ", ".join(sorted(outcome.groups))
    return f"user name {outcome.username}, groups {groups}, until {rfc3339(outcome.not_after)}"


def _words(change: str) -> str:
    return change.replace("_", " ")


def _document(replay: "Replay", decision_filter: "DecisionFilter") -> "JsonObject":
    from clustercert.policy.decision import policy_digest

    return {
        "policy_sha256": policy_digest(replay.policy),
        "since": None if decision_filter.since is None else rfc3339(decision_filter.since),
        "until": None if decision_filter.until is None else rfc3339(decision_filter.until),
        "decisions": replay.decisions,
        "unchanged": replay.unchanged,
        "changes": {str(change): _tally(tally) for change, tally in replay.changes.items()},
        "not_replayable": [
            {"reason": reason, "decisions": count} for reason, count in replay.not_replayable.most_common()
        ],
    }


def _tally(tally: "Tally") -> "JsonObject":
    return {
        "decisions": tally.decisions,
        "users": list(_named(tally.users)),
        "clusters": list(_named(tally.clusters)),
        "recorded_rules": list(_replayed_rules(tally.recorded_rules)),
        "rules": list(_replayed_rules(tally.rules)),
        "examples": list(_examples(tally.examples)),
    }


def _named(counted: Counter[tuple[str, str]]) -> "Iterator[JsonObject]":
    for (own_id, name), count in counted.most_common():
        yield {"id": own_id, "name": name, "decisions": count}


def _replayed_rules(counted: Counter[str]) -> "Iterator[JsonObject]":
    for name, count in counted.most_common():
        yield {"name": name, "decisions": count}


def _examples(examples: "Iterable[Example]") -> "Iterator[JsonObject]":
    for each in examples:
        decision = each.decision
        yield {
            "at": decision.at.isoformat(),
            "request_id": decision.caller.origin.request_id,
            "user_id": decision.caller.user.id,
            "cluster_id": decision.cluster.id,
            "recorded": _outcome(decision.outcome),
            "replayed": _outcome(each.outcome),
        }


def _outcome(outcome: "Outcome") -> "JsonObject":
    return {
        "allowed": outcome.is_allowed,
        "not_after": None if outcome.not_after is None else rfc3339(outcome.not_after),
        "username": outcome.username,
        "groups": sorted(outcome.groups),
        "rules": list(outcome.rules),
        "message": outcome.message,
    }
