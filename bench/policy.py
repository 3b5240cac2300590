"""Measures the policy: how long a decision takes, and the replay of many recorded decisions."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import insert

from bench import world
from bench.world import World
from clustercert.model import (
    AuditEvent,
    Caller,
    CertificateRecord,
    Cluster,
    Domain,
    Group,
    IssueRequest,
    User,
)
from clustercert.model.errors import Forbidden
from clustercert.model.events.issuance import CertificateIssued, CertificateRefused
from clustercert.policy.decision import Policy
from clustercert.policy.rule_settings import PolicySettings
from clustercert.store import tables
from clustercert.store.audit.events import event_row
from clustercert.store.clusters.registry import require_cluster
from clustercert.wiring import Components, open_components

RULES = 100
EXPRESSIONS = 10
DECISIONS, ROUNDS = 200, 25
RECORDED = 100_000
AT_ONCE = 10_000
USERS = 500
DAYS = 30

_DOMAIN = Domain("d" * 32, "default")
_GROUPS = tuple(Group(f"{n:032x}", name, _DOMAIN) for n, name in enumerate(("ops", "team-a", "team-b")))
# The expressions in docs/policy.md. A number makes each one different.
_EXPRESSIONS = (
    '"owner{n}" in cluster.labels && cluster.labels.owner{n} in user.groups',
    "now.getDayOfWeek() in [1, 2, 3, 4, 5] && now.getHours() >= 6 && now.getHours() < {n}",
    'user.groups.exists(name, name.startsWith("support{n}-")) && request.reason.matches("^TICKET-[0-9]+")',
)
_WHEN: dict[str, list[dict[str, object]]] = {
    f"{RULES} rules for roles": [{"roles": [f"role-{n}"]} for n in range(RULES)],
    f"{RULES} rules for groups": [{"groups": [f"group-{n}"]} for n in range(RULES)],
    f"{RULES} rules for patterns such as `team-*`": [{"groups": [f"team{n}-*"]} for n in range(RULES)],
    f"{RULES} rules for patterns such as `*-admins`": [{"groups": [f"*-{n}"]} for n in range(RULES)],
    f"{RULES} rules for patterns such as `team-*-x?`": [{"groups": [f"team{n}-*-x?"]} for n in range(RULES)],
    f"{RULES} rules for role, pattern and cluster": [
        {"roles": ["member"], "groups": [f"*-{n}"], "clusters": ["prod*"]} for n in range(RULES)
    ],
    "one expression": [{"cel": _EXPRESSIONS[0].format(n=0)}],
    f"{EXPRESSIONS} expressions": [
        {"cel": _EXPRESSIONS[n % len(_EXPRESSIONS)].format(n=n)} for n in range(EXPRESSIONS)
    ],
}


@dataclass(frozen=True, slots=True)
class Replayed:
    """The replay of recorded decisions by a policy with 100 rules, as a command.

    Attributes:
        seconds: from the start of the command to its end.
        memory_mb: the largest resident memory of the process.
    """

    decisions: int
    changed: int
    seconds: float
    memory_mb: float


def measure(folder: Path) -> dict[str, object]:
    """Measure decisions, and the replay of recorded ones from an SQLite file."""
    store = world.prepare(folder)
    cluster = asyncio.run(_recorded(store))
    decisions = [{"what": what, "us": _decision_us(_policy(when), cluster)} for what, when in _WHEN.items()]
    return {"decisions": decisions, "replay": asdict(_replayed(store))}


def _policy(conditions: list[dict[str, object]]) -> Policy:
    """Return a policy in which only the last rule matches."""
    rules = [{"when": when, "grant": {"groups": ["none"]}} for when in conditions]
    matching = {"when": {"roles": ["member"]}, "grant": {"groups": ["editors"]}}
    return PolicySettings.model_validate({"rules": [*rules, matching]}).policy()


def _caller(user_id: str, project_id: str, role: str = "member") -> Caller:
    user = User(user_id, f"user-{user_id[-4:]}", _DOMAIN)
    return Caller(user, {project_id: (role,)}, "token", world.origin(), groups=_GROUPS)


def _decision_us(policy: Policy, cluster: Cluster) -> float:
    """Return the time of a decision in microseconds: the fastest round, because others are disturbed."""
    caller, request, now = _caller("0" * 32, cluster.project_id), IssueRequest(duration=-1), datetime.now(UTC)

    def seconds() -> float:
        started = time.thread_time()
        for _ in range(DECISIONS):
            policy.decide(caller, cluster, request, now)
        return (time.thread_time() - started) / DECISIONS

    return min(seconds() for _ in range(ROUNDS)) * 1e6


@dataclass(slots=True)
class _Ledger:
    """Keeps events instead of recording them."""

    events: list[AuditEvent] = field(default_factory=list)

    async def record(self, _: CertificateRecord, event: AuditEvent) -> None:
        self.events.append(event)

    async def record_event(self, event: AuditEvent) -> None:
        self.events.append(event)


async def _recorded(store: World) -> Cluster:
    """Record decisions like those of the service, spread over four weeks, and seal them. Returns the cluster."""
    async with open_components(store.settings) as components:
        cluster = await require_cluster(components.clusters.queries, store.project_id, store.cluster_id)
        decided = await _decided(components, cluster)
        for first in range(0, RECORDED, AT_ONCE):
            rows = [event_row(event) for event in _repeated(decided, first)]
            async with components.database.transaction() as connection:
                await connection.execute(insert(tables.audit_event), rows)
            await components.log_sealer.seal_all()
        return cluster


async def _decided(components: Components, cluster: Cluster) -> list[AuditEvent]:
    """Request a certificate for each user; one of ten users is refused. Returns the events."""
    ledger = _Ledger()
    issuance, denials = (
        replace(components.issuance, ledger=ledger),
        replace(components.denials, ledger=ledger),
    )
    for number in range(USERS):
        caller = _caller(f"{number:032x}", cluster.project_id, "member" if number % 10 else "nobody")
        request = IssueRequest(duration=DAYS)
        try:
            await issuance.issue(caller, cluster.project_id, cluster.id, request)
        except Forbidden as refused:
            await denials.certificate(caller, cluster.project_id, cluster.id, request, refused)
    return ledger.events


def _repeated(decided: list[AuditEvent], first: int) -> Iterator[AuditEvent]:
    """Yield events like those, from number `first` on."""
    begin = datetime.now(UTC) - timedelta(days=29)
    for number in range(first, first + AT_ONCE):
        event = decided[number % len(decided)]
        at = begin + number * timedelta(days=28) / RECORDED
        trace = {"decided_at": at.isoformat()}
        if isinstance(event, CertificateRefused):
            yield replace(event, at=at, trace={**event.trace, **trace})
        elif isinstance(event, CertificateIssued):
            ends = at.replace(microsecond=0) + timedelta(days=DAYS)
            yield replace(event, at=at, not_after=ends, trace={**event.trace, **trace})


# Runs a command, and then prints its largest memory. That of a child, as `wait4` has it, includes its parent's.
_COMMAND = """
import pathlib, re, sys
from clustercert.cli.main import run
code = run(sys.argv[1:])
sys.stderr.write(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
sys.exit(code)
"""


def _replayed(store: World) -> Replayed:
    """Replay as a command, with rules that match patterns of groups, and one that shortens a lifetime."""
    policy = store.folder / "policy.toml"
    policy.write_text(_toml())
    command = [sys.executable, "-c", _COMMAND, "--config", str(store.config), "policy", "replay"]
    options = ["--policy", str(policy), "--output", "json"]
    started = time.perf_counter()
    ended = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - started
    told = json.loads(ended.stdout)
    if told["decisions"] != RECORDED:
        raise RuntimeError(f"not all decisions were replayed: {told['not_replayable']}")
    changed = told["decisions"] - told["unchanged"]
    return Replayed(told["decisions"], changed, seconds, int(ended.stderr) / 1024)


def _toml() -> str:
    rules = [f'when.groups = ["team{n}-*"]\ngrant.groups = ["none"]' for n in range(RULES - 2)]
    rules += [
        'when.users = ["*1"]\ngrant.groups = ["clustercert:editors"]\ngrant.max_lifetime = "8h"',
        'when.roles = ["member"]\ngrant.groups = ["clustercert:editors"]',
    ]
    return "\n".join(f"[[rules]]\n{rule}\n" for rule in rules)
