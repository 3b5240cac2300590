"""Prints the result of `clustercert policy replay`."""

from collections import Counter
from typing import TYPE_CHECKING

from clustercert.cli.output import Output, document, note, paragraph, show_list, write_out
from clustercert.model.times import rfc3339

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from clustercert.model import JsonObject
    from clustercert.policy.recorded_decisions import DecisionFilter, Outcome
    from clustercert.policy.replay import Change, Example, Replay, Tally

# The maximum number of names in one line for people.
MAX_LISTED = 10


def show_replay(replay: "Replay", wanted: "DecisionFilter", output: Output) -> None:
    """Print a comparison. JSON and YAML have all names, a table is followed by the most frequent ones."""
    if output in (Output.JSON, Output.YAML):
        write_out(document(_document(replay, wanted), output))
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
    note(f"{replay.decisions} decisions were replayed; {replay.decisions - replay.unchanged} would differ.")
    for reason, count in replay.not_replayable.most_common():
        note(f"Not replayable: {count}, because {reason}.")


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
    """Count by name. Two users of one name, such as a deleted one and its successor, are listed with their ids."""
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


def _document(replay: "Replay", wanted: "DecisionFilter") -> "JsonObject":
    from clustercert.policy.digest import policy_digest

    return {
        "policy_sha256": policy_digest(replay.policy),
        "since": None if wanted.since is None else rfc3339(wanted.since),
        "until": None if wanted.until is None else rfc3339(wanted.until),
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
        "recorded_rules": list(_rules(tally.recorded_rules)),
        "rules": list(_rules(tally.rules)),
        "examples": list(_examples(tally.examples)),
    }


def _named(counted: Counter[tuple[str, str]]) -> "Iterator[JsonObject]":
    for (own_id, name), count in counted.most_common():
        yield {"id": own_id, "name": name, "decisions": count}


def _rules(counted: Counter[str]) -> "Iterator[JsonObject]":
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
