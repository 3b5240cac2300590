"""The text output of `explain`, `policy explain` and `policy replay`."""

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from clustercert.cli.terminal.output import Output, document, paragraph, print_note, show_list, write_out
from clustercert.cli.terminal.printable import printable
from clustercert.model.times import parse_rfc3339, rfc3339

if TYPE_CHECKING:
    from clustercert.model import JsonObject
    from clustercert.policy.replay import DecisionFilter, Example, OutcomeChange, Replay, ReplayOutcome, Tally


# The object whose end limits a certificate's lifetime, by the name in the API.
_ENDS = {"ca": "the client CA", "access_request": "the access request"}
_WIDTH = 80
# The maximum width of the column with rule names. A longer name moves the rest of its line to the right.
_MAX_NAME = 24


def explanation_lines(body: dict[str, Any]) -> list[str]:
    """Return the text of an explanation: the verdict, then the certificate or what is missing, then the rules.

    `body` is the response of the API.
    """
    return [
        _verdict(body),
        *_seen(body),
        *_certificate(body),
        *_nearest(body),
        *_rules(body),
    ]


def _verdict(body: dict[str, Any]) -> str:
    user, cluster = body["user"], body["cluster"]
    if body["allowed"]:
        return _wrapped(
            f"Allowed: {user['name']} gets a {cluster['credential']} for the cluster {cluster['shown_name']}.",
            "",
        )
    message = body["message"]
    if not user["roles"]:
        message = f"{user['name']} has no role in the project of the cluster {cluster['shown_name']}."
    return _wrapped(f"Refused ({body['status']}): {message}", "")


def _seen(body: dict[str, Any]) -> Iterator[str]:
    if body["seen_at"] is not None:
        yield _wrapped(
            f"Decided with the groups and roles that the user had at {body['seen_at']}, the time of the user's last "
            "recorded request.",
            "",
        )


def _certificate(body: dict[str, Any]) -> Iterator[str]:
    from clustercert.policy.lifetime import BACKDATE, MAX_LIFETIME_SETTING, lifetime_text

    signed = body["would_sign"]
    if signed is None:
        return
    issued_at = parse_rfc3339(signed["not_before"]) + BACKDATE
    limit, lifetime = signed["limit"], parse_rfc3339(signed["not_after"]) - issued_at
    by = f"rule {limit['rule']}" if limit["rule"] is not None else MAX_LIFETIME_SETTING
    longest = f"{lifetime_text(parse_rfc3339(limit['until']) - issued_at)}, by {by}"
    if limit["by"] in _ENDS:
        longest = f"{limit['until']}, the end of {_ENDS[limit['by']]}"
    yield f"\nThe {body['cluster']['credential']}:"
    for name, value in (
        ("user name", signed["common_name"]),
        ("groups", ", ".join(signed["organizations"])),
        *((("left out", _left_out(signed["left_out"])),) if signed["left_out"] else ()),
        ("not before", signed["not_before"]),
        ("not after", f"{signed['not_after']} ({lifetime_text(lifetime)})"),
        *((("key type", signed["key_type"]),) if signed["key_type"] else ()),
        ("limit", longest + (", which shortens the requested lifetime" if signed["shortened"] else "")),
    ):
        yield _wrapped(f"  {name:<12}{value}", " " * 14)


def _left_out(groups: list[str]) -> str:
    return f"{', '.join(groups)} ({'has' if len(groups) == 1 else 'have'} no role in this cluster)"


def _nearest(body: dict[str, Any]) -> Iterator[str]:
    nearest = body["nearest"]
    if nearest is None:
        return
    yield _wrapped(f"\nNearest rule: {nearest['rule']}. It would allow the request with:", "")
    for change in nearest["changes"]:
        yield _wrapped(f"  - {_with_found(change)}", " " * 4)


def _rules(body: dict[str, Any]) -> Iterator[str]:
    rules = body["rules"]
    if rules:
        width = min(max(len(printable(each["name"])) for each in rules), _MAX_NAME)
        yield "\nRules:" if body["complete"] else "\nRules that you may see:"
        for rule in rules:
            mark, text = _rule(rule, is_complete=body["complete"])
            yield _wrapped(f"  {mark:<5} {rule['name']:<{width}}  {text}", " " * (width + 10))
    if body["allowed"] and body["how_to_ask"] is not None:
        yield _wrapped(f"\n{body['how_to_ask']}", "")


def _rule(rule: dict[str, Any], *, is_complete: bool) -> tuple[str, str]:
    """Return a short word for the rule's outcome, and the reason."""
    match rule["outcome"]:
        case "grants":
            return "yes", f"gives {', '.join(rule['groups'])}" if rule["groups"] else "grants"
        case "offers":
            return "ask", _offered(rule["offer"])
        case "denies":
            conditions = "; ".join(each["wanted"] for each in rule["conditions"])
            always = "denies every request" if is_complete else "denies the request"
            return "DENY", f"denies, because {conditions}" if conditions else always
        case "fails":
            return "FAILS", "; ".join(each["found"] for each in rule["conditions"] if each["met"] is None)
        case "does_not_match":
            return "no", _missing(rule)
        case _:
            return "-", f"not reached; {_missing(rule) or 'would match'}"


def _offered(offer: dict[str, Any]) -> str:
    from clustercert.policy.lifetime import lifetime_text

    lifetime = lifetime_text(timedelta(seconds=offer["max_lifetime"]))
    text = f"offers {', '.join(offer['groups'])} for at most {lifetime}"
    if not offer["approvals"]:
        return f"{text}, without approval"
    early = ", usable before the approval" if offer["before_approval"] else ""
    return f"{text}{early}; approvers: {', '.join(offer['approvals'])}"


def _missing(rule: dict[str, Any]) -> str:
    """Return a text with a rule's first unmet condition and the number of further unmet conditions."""
    unmet = [each for each in rule["conditions"] if not each["met"]]
    if not unmet:
        return ""
    first, *more = unmet
    further = f"; and {len(more)} more" if more else ""
    return f"{'would deny if' if rule['denies'] else 'needs'} {_with_found(first)}{further}"


def _with_found(condition: dict[str, Any]) -> str:
    found = condition["found"]
    return f"{condition['wanted']} (found: {found})" if found else str(condition["wanted"])


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

    JSON and YAML output contains the names of all users, clusters and rules. The text after a table contains only the
    most frequent names.
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


def _show_tally(change: "OutcomeChange", tally: "Tally") -> None:
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
    """Return the counts by name. Appends the id if several objects have the name, such as a deleted and a new user."""
    names = Counter(name for _, name in counted)
    return Counter(
        {name if names[name] == 1 else f"{name} {own_id}": n for (own_id, name), n in counted.items()}
    )


def _in_words(outcome: "ReplayOutcome") -> str:
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


def _outcome(outcome: "ReplayOutcome") -> "JsonObject":
    return {
        "allowed": outcome.is_allowed,
        "not_after": None if outcome.not_after is None else rfc3339(outcome.not_after),
        "username": outcome.username,
        "groups": sorted(outcome.groups),
        "rules": list(outcome.rules),
        "message": outcome.message,
    }
