"""docs/backup.md: PostgreSQL is set back to an earlier time, and the page says what is lost then."""

import asyncio
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from sqlalchemy.engine import make_url

from support import postgres
from support.backup import Machine, commands, machine
from support.kubernetes_messages import review_of
from support.leaf_checks import leaf_of
from support.page_steps import Step, compare, steps_below
from support.serve_process import serving
from support.stores import Store
from support.wait import SECONDS, eventually
from support.world import webhook_token

pytestmark = pytest.mark.full


@dataclass(frozen=True)
class Archived:
    """A PostgreSQL server that archives its log, and the folder of the archive."""

    server: postgres.Server
    archive: Path

    def back_up(self, folder: Path) -> None:
        url = make_url(self.server.url("postgres"))
        subprocess.run(
            [
                *(self.server.programs / "pg_basebackup", "--pgdata", folder, "--checkpoint=fast"),
                *("--host", str(url.host), "--port", str(url.port), "--username=postgres", "--no-sync"),
            ],
            env={"PGPASSWORD": self.server.password},
            check=True,
            capture_output=True,
            timeout=SECONDS,
        )

    def now(self) -> str:
        """The time of the server, after all earlier commits and before all later ones."""
        [(now,)] = self.server.run("SELECT clock_timestamp()::text")
        return str(now)

    def start(self) -> None:
        for path in (self.server.data, *self.server.data.rglob("*")):
            postgres.give_to_nobody(path)
        self.server.start()
        eventually(lambda: self.server.run("SELECT pg_is_in_recovery()") == [(False,)])


@pytest.fixture
def archived() -> Iterator[Archived]:
    archive = Path(tempfile.mkdtemp(prefix="clustercert-archive-"))
    postgres.give_to_nobody(archive)
    try:
        settings = {
            "wal_level": "replica",
            "max_wal_senders": "4",
            "archive_mode": "on",
            "archive_command": f"cp %p {archive}/%f",
        }
        with postgres.server(**settings) as server:
            yield Archived(server, archive)
    finally:
        shutil.rmtree(archive)


@dataclass(frozen=True)
class Webhook:
    """A client of a webhook process."""

    client: httpx2.Client
    path: str

    def denial(self, certificate: "Issued") -> str | None:
        """The reason why the webhook denies a certificate, or None if it does not."""
        answer = self.client.post(self.path, content=certificate.review)
        assert answer.status_code == 200, answer.text
        status = answer.json()["status"]
        return str(status["reason"]) if status.get("denied") else None


@dataclass(frozen=True)
class Issued:
    """A certificate, and the review of a request of its holder."""

    fingerprint: str
    review: bytes


def issue(running: Machine) -> Issued:
    answer = running.post(running.world.path(), {"duration": 1})
    fingerprint = answer.headers["X-Clustercert-Fingerprint"]
    return Issued(fingerprint, review_of(leaf_of(answer.json()), fingerprint))


def set_back(running: Machine, archived: Archived, time: str) -> None:
    """Follow the page."""
    running.variables |= {"PGDATA": str(archived.server.data)}
    for step in commands("point in time"):
        if step.command.startswith("systemctl stop clustercert"):
            running.stop()
        elif step.command.startswith("systemctl stop postgresql"):
            archived.server.stop()
        elif step.command.startswith("systemctl start postgresql"):
            archived.start()
        else:
            from_archive = step.command.replace("/archive/", f"{archived.archive}/")
            running.type(Step(re.sub(r"'2026-[^']+'", f"'{time}'", from_archive), ()))


def sealed(store: Store) -> int:
    """The size of the log, once all events are sealed."""
    eventually(lambda: store.rows("SELECT count(*) FROM audit_unsealed") == [(0,)])
    [(size,)] = store.rows("SELECT size FROM audit_log")
    return int(str(size))


def verification(running: Machine) -> tuple[int, str]:
    """The exit code and the output of `audit verify` with the checkpoints that were kept."""
    kept, key = (running.folder / "keys" / name for name in ("kept-checkpoints", "clustercert.key"))
    options: list[str | Path] = ["--checkpoint", kept, "--key", key]
    command = ["clustercert", "--config", running.config, "audit", "verify", *options]
    done = subprocess.run(
        command, env=running.environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_after_a_point_in_time_restore_later_certificates_are_unknown_and_later_revocations_lost(
    archived: Archived, tmp_path: Path
) -> None:
    url = archived.server.create()
    store = Store(url)
    with machine(tmp_path, url) as running, serving(running.world, "--role", "webhook") as process:
        token = asyncio.run(webhook_token(running.world))
        path = f"/clustercert/v1/kubernetes/clusters/{running.world.clusters['plain'].id}/authorize"
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        with httpx2.Client(base_url=process.url, headers=headers, timeout=SECONDS, trust_env=False) as client:
            webhook = Webhook(client, path)
            before, revoked_before = issue(running), issue(running)
            running.revoke(revoked_before.fingerprint)
            archived.back_up(tmp_path / "backup" / "base")
            between = issue(running)
            size_then = sealed(store)
            then = archived.now()
            running.revoke(before.fingerprint)
            later = [issue(running) for _ in range(5)]
            eventually(lambda: webhook.denial(before))
            assert [webhook.denial(each) for each in later] == [None] * 5
            size_now = sealed(store)
            for name, what in (
                ("clustercert.key", "checkpoint --verifier-key"),
                ("kept-checkpoints", "checkpoint"),
            ):
                running.type(Step(f"clustercert --config {running.config} audit {what} > /keys/{name}", ()))
            assert verification(running)[0] == 0
            archived.server.run("SELECT pg_switch_wal()")

            set_back(running, archived, then)

            running.type(Step(f"clustercert --config {running.config} audit verify", ()))
            code, said = verification(running)
            assert code == 1
            assert f"has {size_now} leaves, but only {size_then} are left" in said
            [(verify,)] = steps_below("docs/backup.md", "After a restore")
            compare(
                verify,
                said,
                {"size 37 has 37": f"size {size_now} has {size_now}", "only 31": f"only {size_then}"},
            )
            # The webhook's process was not stopped. It follows the restored ledger.
            for each in later:
                reason = eventually(lambda each=each: webhook.denial(each))  # type: ignore[misc] # the lambda has no types
                assert reason is not None
                assert "not in the ledger" in reason
            assert [webhook.denial(each) for each in (before, between)] == [None, None]
            unknown = "SELECT count(*) FROM audit_event WHERE kind = 'credential.unknown'"
            eventually(lambda: store.rows(unknown) != [(0,)])
            for step in commands("revoke after restore"):
                running.type(step.here({"--cluster prod": "--cluster plain"}))
            for each in (before, between):
                eventually(lambda each=each: webhook.denial(each))  # type: ignore[misc] # the lambda has no types
            running.start()
            states = [running.state(each.fingerprint) for each in (revoked_before, before, between, *later)]
            assert states == ["revoked"] * 3 + ["unknown"] * 5
            new = issue(running)
            assert webhook.denial(new) is None
            # The new log never becomes the one that was published.
            while sealed(store) <= size_now:
                issue(running)
            code, said = verification(running)
            assert code == 1
            assert f"The first {size_now} leaves do not match the checkpoint" in said
