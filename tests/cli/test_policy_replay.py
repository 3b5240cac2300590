"""`clustercert policy replay`, with certificates that the service issued and refused."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from clustercert.audit.sealer import LogSealer
from clustercert.cli.policy import output
from clustercert.model import Caller, IssueRequest
from clustercert.model.errors import Forbidden
from clustercert.pki.certificates import chain_pem
from clustercert.pki.client_ca import new_client_ca
from clustercert.pki.keys import new_key
from clustercert.settings import load
from clustercert.wiring import open_components
from support.command_line import Operator, new_operator
from support.samples import caller
from support.stores import execute

NOW_DENIED = """
[[rules]]
name = "freeze"
deny = "Frozen."
"""
SHORTER = """
[[rules]]
name = "all"
grant.groups = ["viewers"]
grant.max_lifetime = "1h"
"""
DECISIONS = 4


@dataclass(frozen=True)
class Recorded:
    """A store with recorded decisions."""

    operator: Operator
    project_id: str
    cluster_id: str

    def replay(self, rules: str | None = None, *more: str | Path) -> Any:
        return self.operator.output_json("policy", "replay", *self.policy(rules), *more)

    def policy(self, rules: str | None) -> tuple[str | Path, ...]:
        if rules is None:
            return ()
        file = self.operator.folder / "new.toml"
        file.write_text(rules, encoding="utf-8")
        return "--policy", file


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    place = registered(tmp_path_factory.mktemp("recorded"))
    asyncio.run(_decide(place.operator, place.project_id, place.cluster_id))
    return place


def registered(folder: Path) -> Recorded:
    """A new store with a cluster."""
    operator = new_operator(folder)
    server_ca = operator.folder / "server-ca.pem"
    ca = new_client_ca("kubernetes", new_key("ec-p256"), datetime.now(UTC), timedelta(days=1))
    server_ca.write_bytes(chain_pem((ca,)))
    operator.output("project", "create", "eu-de")
    added = operator.output_json(
        *("cluster", "add", "prod", "--project", "eu-de"),
        *("--internal-url", "https://10.0.0.5:6443", "--server-ca", server_ca),
    )
    return Recorded(operator, added["project_id"], added["id"])


async def _decide(operator: Operator, project_id: str, cluster_id: str) -> None:
    """Issue three certificates, and refuse one."""

    def member(user_id: str, role: str = "member") -> Caller:
        return caller(user_id=user_id * 32, in_projects={project_id: (role,)})

    request = IssueRequest(duration=-1)
    async with open_components(load(operator.config)) as components:
        for user_id in "112":
            await components.issuance.issue(member(user_id), project_id, cluster_id, request)
        stranger = replace(member("3", "nothing"), origin=replace(member("3").origin, request_id="e" * 32))
        with pytest.raises(Forbidden) as refused:
            await components.issuance.issue(stranger, project_id, cluster_id, request)
        await components.denials.certificate(stranger, project_id, cluster_id, request, refused.value)


def decisions(replayed: Any) -> dict[str, int]:
    return {name: each["decisions"] for name, each in replayed["changes"].items() if each["decisions"]}


def test_the_policy_in_use_changes_nothing(recorded: Recorded) -> None:
    replayed = recorded.replay()
    assert (replayed["decisions"], replayed["unchanged"]) == (DECISIONS, DECISIONS)
    assert decisions(replayed) == {}
    assert replayed["not_replayable"] == []


def test_another_policy_is_compared_by_users_clusters_and_rules(recorded: Recorded) -> None:
    replayed = recorded.replay(NOW_DENIED)
    assert decisions(replayed) == {"allow_to_deny": 3}
    denied = replayed["changes"]["allow_to_deny"]
    assert [(each["id"][0], each["name"], each["decisions"]) for each in denied["users"]] == [
        ("1", "default/alice", 2),
        ("2", "default/alice", 1),
    ]
    assert denied["clusters"] == [{"id": recorded.cluster_id, "name": "prod", "decisions": 3}]
    assert denied["recorded_rules"] == [{"name": "member", "decisions": 3}]
    assert denied["rules"] == [{"name": "freeze", "decisions": 3}]
    assert denied["examples"][0]["replayed"]["message"] == "Frozen."
    allowed = recorded.replay(SHORTER)
    assert decisions(allowed) == {"deny_to_allow": 1, "shorter": 3, "other_groups": 3}
    assert allowed["changes"]["deny_to_allow"]["examples"][0]["request_id"] == "e" * 32


def test_the_table_names_who_is_affected(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    done = recorded.operator.run("policy", "replay", *recorded.policy(NOW_DENIED))
    assert done.code == 0
    assert "allow to deny    3           2       1\n" in done.out
    assert f"users: default/alice {'1' * 32} (2), default/alice {'2' * 32} (1)" in " ".join(done.out.split())
    assert "rules then: member (3)\n  rules now: freeze (3)\n" in done.out
    assert "now: refused: Frozen.\n" in done.out
    assert done.err == f"{DECISIONS} decisions were replayed; 3 would differ.\n"
    monkeypatch.setattr(output, "MAX_LISTED", 1)
    assert "(2), and 1 more" in recorded.operator.output("policy", "replay", *recorded.policy(NOW_DENIED))


# Live certificates


def test_the_policy_in_use_would_issue_all_live_certificates(recorded: Recorded) -> None:
    done = recorded.operator.run("policy", "replay", "--live")
    assert (done.code, done.out) == (0, ""), done.err
    assert done.err.endswith(
        "Live certificates compared: 3. Would be refused: 0; shorter: 0; with fewer groups: 0.\n"
    )


def test_live_certificates_that_would_be_refused_or_less_are_listed(recorded: Recorded) -> None:
    refused = recorded.replay(NOW_DENIED, "--live")
    assert [each["user_id"][0] for each in refused] in (["1", "1", "2"], ["1", "2", "1"], ["2", "1", "1"])
    assert {(each["user"], each["cluster"], each["project"]) for each in refused} == {
        ("default/alice", "prod", "eu-de")
    }
    assert {(*each["change"], *each["rules"], each["why"]) for each in refused} == {
        ("refused", "freeze", "Frozen.")
    }
    issued = {
        each["fingerprint"]: each["not_after"]
        for each in recorded.operator.output_json("certificate", "list", "--all")
    }
    assert {each["fingerprint"]: each["not_after"] for each in refused} == issued

    less = recorded.replay(SHORTER, "--live")
    assert {(*each["change"], *each["rules"]) for each in less} == {("shorter", "fewer_groups", "all")}
    until = datetime.fromisoformat(less[0]["issued_at"]) + timedelta(hours=1)
    assert less[0]["why"] == f"until {until:%Y-%m-%dT%H:%M:%SZ}; without clustercert:editors"


def test_the_list_of_live_certificates_says_how_many_and_what_to_do(recorded: Recorded) -> None:
    done = recorded.operator.run("policy", "replay", "--live", *recorded.policy(NOW_DENIED))
    assert done.code == 0
    heading, *rows = done.out.splitlines()
    assert heading.split() == ["CERTIFICATE", "USER", "CLUSTER", "NOT-AFTER", "CHANGE", "RULES", "WHY"]
    assert len(rows) == 3
    assert all(row.endswith("refused   freeze   Frozen.") for row in rows)
    assert "Live certificates compared: 3. Would be refused: 3; shorter: 0; with fewer" in done.err
    assert "Revoke one with `clustercert certificate revoke CERTIFICATE`." in done.err


def test_a_revoked_certificate_is_not_live_and_a_deleted_event_is_counted(
    recorded: Recorded, tmp_path: Path
) -> None:
    copy = recorded.operator.copy(tmp_path)
    first, second, _ = copy.output_json("certificate", "list", "--all")
    copy.output("certificate", "revoke", first["fingerprint"], "--yes")
    execute(
        tmp_path / "data" / "clustercert.db",
        "DELETE FROM audit_event WHERE kind = 'certificate.issued' AND subject = ?",
        second["fingerprint"],
    )
    done = copy.run("policy", "replay", "--live", *Recorded(copy, "", "").policy(NOW_DENIED))
    assert "Live certificates compared: 2. Would be refused: 1;" in done.err
    assert "Not comparable: 1, because the audit event was deleted, or is not sealed yet.\n" in done.err
    assert first["fingerprint"][:16] not in done.out


def test_a_certificate_whose_event_is_not_sealed_yet_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = registered(tmp_path)
    asyncio.run(_decide(place.operator, place.project_id, place.cluster_id))

    async def nothing(_sealer: LogSealer) -> int:
        return 0

    monkeypatch.setattr(LogSealer, "seal_all", nothing)
    done = place.operator.run("policy", "replay", "--live", *place.policy(NOW_DENIED))
    assert "Not comparable: 3, because the audit event was deleted, or is not sealed yet.\n" in done.err


def test_certificates_that_were_issued_hours_apart_are_compared(tmp_path: Path) -> None:
    place = registered(tmp_path)

    async def issue() -> None:
        who = caller(in_projects={place.project_id: ("member",)})
        async with open_components(load(place.operator.config)) as components:
            for hours in (50, 49, 3, 0):
                at = datetime.now(UTC) - timedelta(hours=hours)
                issuance = replace(components.issuance, now=lambda at=at: at)  # type: ignore[misc] # mypy can't infer it
                await issuance.issue(who, place.project_id, place.cluster_id, IssueRequest(duration=3))

    asyncio.run(issue())
    done = place.operator.run("policy", "replay", "--live", *place.policy(NOW_DENIED))
    assert len(done.out.splitlines()) == 5
    assert "Live certificates compared: 4. Would be refused: 4;" in done.err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--cluster", "prod"), 3),
        (("--project", "eu-de"), 3),
        (("--project", "eu-de", "--cluster", "prod"), 3),
        (("--project", "other"), 0),
    ],
)
def test_live_certificates_are_selected(recorded: Recorded, options: tuple[str, ...], expected: int) -> None:
    if "other" in options:
        recorded.operator.output("project", "create", "other")
    assert len(recorded.replay(NOW_DENIED, "--live", *options)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--since", "1d"), "Leave out --since"),
        (("--until", "1h"), "Leave out --until"),
        (("--from", "log"), "Leave out --from"),
    ],
)
def test_live_certificates_have_no_period(recorded: Recorded, options: tuple[str, ...], message: str) -> None:
    done = recorded.operator.run("policy", "replay", "--live", *options)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (lambda place: ("--cluster", "prod"), DECISIONS),
        (lambda place: ("--cluster", place.cluster_id), DECISIONS),
        (lambda place: ("--project", "eu-de"), DECISIONS),
        (lambda place: ("--project", place.project_id), DECISIONS),
        (lambda place: ("--project", "0" * 32), 0),
        (lambda place: ("--until", "1h"), 0),
        (lambda place: ("--since", "2999-01-01T00:00:00Z"), 0),
    ],
)
def test_decisions_are_selected(
    recorded: Recorded, options: Callable[[Recorded], tuple[str, ...]], expected: int
) -> None:
    assert recorded.replay(None, *options(recorded))["decisions"] == expected


def test_a_cluster_that_nothing_names_is_not_found(recorded: Recorded, tmp_path: Path) -> None:
    recorded.operator.output("audit", "export", "--out", tmp_path / "log")
    for more in ((), ("--from", tmp_path / "log")):
        done = recorded.operator.run("policy", "replay", "--cluster", "prd", *more)
        assert (done.code, done.out) == (5, ""), done
        assert "There is no cluster prd" in done.err
        assert "Did you mean prod?" in done.err
    # A cluster without decisions exists all the same.
    add = ("cluster", "add", "idle", "--project", "eu-de", "--internal-url", "https://10.0.0.9:6443")
    recorded.operator.output(*add, "--server-ca", recorded.operator.folder / "server-ca.pem")
    assert recorded.replay(None, "--cluster", "idle")["decisions"] == 0
    recorded.operator.output("cluster", "remove", "idle", "--yes")


def test_files_with_events_are_replayed_as_well(recorded: Recorded, tmp_path: Path) -> None:
    operator, lines = recorded.operator, tmp_path / "events.jsonl"
    operator.output("audit", "export", "--out", tmp_path / "log")
    lines.write_text(operator.output("audit", "tail", "--output", "json") + "no event\n", encoding="utf-8")
    stored = recorded.replay(NOW_DENIED)
    for path in (tmp_path / "log", lines):
        read = recorded.replay(NOW_DENIED, "--from", path)
        assert read | {"since": stored["since"]} == stored
        assert recorded.replay(None, "--from", path, "--until", "1h")["decisions"] == 0
        assert recorded.replay(None, "--from", path, "--project", "0" * 32)["decisions"] == 0
        assert recorded.replay(None, "--from", path, "--cluster", "prod")["decisions"] == DECISIONS
    missing = operator.error("policy", "replay", "--from", tmp_path / "nothing")
    assert "can't be read: No such file" in missing


def test_a_folder_or_file_without_events_is_an_error(recorded: Recorded, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no event\n", encoding="utf-8")
    for path in (tmp_path / "empty", tmp_path / "notes.txt"):
        assert "has no events" in recorded.operator.error("policy", "replay", "--from", path)


def test_events_without_all_inputs_are_counted_as_not_replayable(recorded: Recorded, tmp_path: Path) -> None:
    lines = tmp_path / "events.jsonl"
    events = [
        json.loads(line) for line in recorded.operator.output("audit", "tail", "-o", "json").splitlines()
    ]
    for event in events:
        event["detail"].pop("trace", None)
    repeated = {
        "kind": "refusals.repeated",
        "project_id": None,
        "at": events[-1]["at"],
        "detail": {
            "refusals": [{"kind": "certificate.refused", "count": 7}, {"kind": "request.refused", "count": 1}]
        },
    }
    lines.write_text("".join(json.dumps(event) + "\n" for event in (*events, repeated)), encoding="utf-8")
    replayed = recorded.replay(None, "--from", lines)
    assert replayed["decisions"] == 0
    assert [each["decisions"] for each in replayed["not_replayable"]] == [7, DECISIONS]
    assert "only the number of refusals" in replayed["not_replayable"][0]["reason"]
    # They name no cluster, so any cluster may be theirs.
    of_cluster = recorded.replay(None, "--from", lines, "--cluster", "prod")["not_replayable"]
    assert [each["decisions"] for each in of_cluster] == [7, DECISIONS]
    told = recorded.operator.run("policy", "replay", "--from", lines).err
    assert "Not replayable: 4, because the event is malformed." in told


def test_a_fault_in_the_policy_is_reported_with_its_place(recorded: Recorded) -> None:
    policy = recorded.policy(SHORTER.replace("1h", "an hour"))
    message = recorded.operator.error("policy", "replay", *policy)
    assert "new.toml:5:7: policy.rules.0.grant.max_lifetime: " in message
