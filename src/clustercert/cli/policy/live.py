"""`clustercert policy replay --live`: the live certificates that a policy would not issue in the same way."""

from collections import deque
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from clustercert.cli.certificate.command import Scope, search_certificates
from clustercert.cli.terminal.output import Output, Progress, Row, print_note, show_list, with_names
from clustercert.client.administration import path_of
from clustercert.model.times import parse_rfc3339, rfc3339

if TYPE_CHECKING:
    from clustercert.client.administration import AdministrationClient
    from clustercert.model import JsonObject
    from clustercert.policy.decision import Policy
    from clustercert.policy.live_replay import AffectedCertificate, LiveComparison

MAX_COMPARED = 100_000
_COLUMNS = ("certificate", "user", "cluster", "not_after", "change", "rules", "why")
# Number of audit events in a page. Pages are small, because often only one event of a page is needed.
_PAGE = "200"
# The maximum time from the issue of a certificate until the audit event is recorded.
_SIGNING = timedelta(minutes=5)
# If two certificates were issued further apart than this, skip the audit events between them.
_GAP = timedelta(hours=1)


def replay_live(
    client: "AdministrationClient", policy: "Policy", cluster: str | None, project: str | None, output: Output
) -> None:
    """Compare the live certificates that the caller may see with the policy, and print the affected certificates."""
    from clustercert.policy.live_replay import NO_EVENT, LiveComparison

    scope = Scope(everything=True, cluster=cluster, project=project)
    found, are_more = search_certificates(client, scope, {"state": "live"}, MAX_COMPARED)
    certificates = {str(each["fingerprint"]): each for each in found}
    comparison, missing = LiveComparison(policy), len(certificates)
    with Progress("certificates compared", missing) as progress:
        for event in _issuances(client, certificates):
            comparison.add(event)
            missing -= 1
            progress.reach(len(certificates) - missing, len(certificates))
    if missing:
        comparison.not_replayable[NO_EVENT] += missing
    rows = [_row(each, certificates[each.fingerprint]) for each in comparison.affected]
    show_list(rows, output, columns=_COLUMNS, name="certificate", keep=("user", "cluster", "change"))
    if output is Output.TABLE:
        _show_counts(comparison, len(certificates), are_more=are_more)


def _issuances(
    client: "AdministrationClient", certificates: "Mapping[str, JsonObject]"
) -> "Iterator[JsonObject]":
    """Yield the audit events that record the issue of the certificates. Skips deleted events."""
    by_path: dict[str, dict[str, datetime]] = {}
    for fingerprint, each in certificates.items():
        owner = () if client.reads_everything else ("projects", str(each["project_id"]))
        issued_at = by_path.setdefault(path_of(*owner, "events"), {})
        issued_at[fingerprint] = parse_rfc3339(str(each["issued_at"]))
    for path, issued_at in by_path.items():
        yield from _issuances_in(client, path, issued_at)


def _issuances_in(
    client: "AdministrationClient", path: str, issued_at: dict[str, datetime]
) -> "Iterator[JsonObject]":
    from clustercert.policy.replay import ISSUED

    waiting = deque(sorted(issued_at, key=lambda fingerprint: issued_at[fingerprint]))
    while waiting:
        since = issued_at[waiting[0]].isoformat()
        for event in client.list_all(path, "events", kind=ISSUED, order="oldest", since=since, limit=_PAGE):
            at = parse_rfc3339(str(event["at"]))
            if issued_at.pop(str(event["subject"]), None) is not None:
                yield event
            while waiting and (waiting[0] not in issued_at or issued_at[waiting[0]] < at - _SIGNING):
                waiting.popleft()
            if not waiting or issued_at[waiting[0]] > at + _GAP:
                break
        else:
            return


def _show_counts(comparison: "LiveComparison", compared: int, *, are_more: bool) -> None:
    from clustercert.policy.live_replay import LiveChange

    refused, shorter, fewer = (comparison.count(change) for change in LiveChange)
    print_note(
        f"Live certificates compared: {compared}. Would be refused: {refused}; shorter: {shorter}; with fewer groups: "
        f"{fewer}."
    )
    for reason, count in comparison.not_replayable.most_common():
        print_note(f"Not comparable: {count}, because {reason}.")
    if are_more:
        print_note(f"Only the {MAX_COMPARED} newest were compared. Add --project or --cluster.")
    if comparison.affected:
        print_note(
            "These certificates stay valid. Revoke one with `clustercert certificate revoke CERTIFICATE`."
        )


def _row(affected: "AffectedCertificate", certificate: "JsonObject") -> Row:
    names = ("fingerprint", "user_id", "cluster_id", "cluster_name", "project_id", "project_name")
    row = with_names({name: certificate[name] for name in (*names, "issued_at", "not_after")})
    return row | {
        "user": affected.decision.caller.user.shown_name,
        "change": affected.changes,
        "rules": affected.outcome.rules,
        "why": "; ".join(_reasons(affected)),
    }


def _reasons(affected: "AffectedCertificate") -> Iterator[str]:
    issued, outcome = affected.decision.outcome, affected.outcome
    if issued.not_after is None or outcome.not_after is None:
        yield outcome.message
        return
    if outcome.not_after < issued.not_after:
        yield f"until {rfc3339(outcome.not_after)}"
    if lost := issued.groups - outcome.groups:
        yield f"without {', '.join(sorted(lost))}"
