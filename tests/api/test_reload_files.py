"""The policy is reloaded when its file changes, without a signal."""

import base64
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from clustercert.server import reloading
from clustercert.server.file_watch import FileWatch
from clustercert.server.reloading import Reloader
from clustercert.settings import load
from support import world as worlds
from support.log_capture import captured_logs
from support.service import Service
from support.stores import Store
from support.wait import eventually
from support.world import World

POLICY = """
[[rules]]
name = "admins"
when.roles = ["admin"]
grant.groups = ["first"]

[[examples]]
name = "an admin"
caller.roles = ["admin"]
expects.lifetime = "1825d"
"""


@dataclass
class Running:
    world: World
    service: Service
    policy: Path
    log: Sequence[MutableMapping[str, Any]]

    def groups(self) -> list[str]:
        """The Kubernetes groups in a certificate that is issued now."""
        path, headers = self.world.path(), self.world.people["admin"].headers
        answer = self.service.client.post(path, json={"duration": 1}, headers=headers)
        [user] = answer.json()["users"]
        leaf = x509.load_pem_x509_certificate(base64.b64decode(user["user"]["client-certificate-data"]))
        names = [str(each.value) for each in leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
        return [name for name in names if not name.startswith("clustercert:credential:")]

    def next_line(self, count: int) -> Mapping[str, Any]:
        """Wait for the first log line of the reloader after this many."""
        return eventually(lambda: next(iter(self.lines()[count:]), None)) or {}

    def lines(self) -> list[MutableMapping[str, Any]]:
        return [line for line in self.log if line["event"].startswith("settings ")]

    def digests(self) -> list[str]:
        events = Store(self.world.settings().store_url).events()
        return [str(event["subject"]) for event in events if event["kind"] == "policy.loaded"]


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(reloading, "POLL_SECONDS", 0.05)
    world = worlds.make(tmp_path)
    policy, config = tmp_path / "policy.toml", tmp_path / "clustercert.toml"
    policy.write_text(POLICY)
    config.write_text(
        f"data_dir = '{tmp_path / 'data'}'\nkek_file = '{tmp_path / 'kek'}'\n[policy]\nfile = '{policy}'\n"
    )
    reloader = Reloader(partial(load, config), None, FileWatch(config))
    settings = load(config)
    # The application sets up the log, so it must start before the capture.
    with Service(settings, reloader=reloader).running() as service, captured_logs(reloading) as said:
        yield Running(world, service, policy, said)


def write(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def test_a_changed_policy_applies_and_is_recorded_with_the_digest_in_the_log(running: Running) -> None:
    assert running.groups() == ["first"]
    write(running.policy, POLICY.replace("first", "second"))
    line = running.next_line(0)
    assert (line["event"], line["changed"]) == ("settings reloaded", ["policy.rules"])
    assert line["rules_changed"] == ["admins"]
    assert running.groups() == ["second"]
    before, after = running.digests()
    assert (before != after, after) == (True, line["policy_sha256"])


def test_a_policy_whose_example_fails_is_not_used(running: Running) -> None:
    write(running.policy, POLICY.replace('["first"]', '["second"]\ngrant.max_lifetime = "8h"'))
    line = running.next_line(0)
    assert line["event"] == "settings not reloaded"
    assert "an admin: expected allowed; lifetime 1825 days; got allowed; groups second" in line["error"]
    assert running.groups() == ["first"]
    write(running.policy, POLICY.replace("first", "third"))
    assert running.next_line(1)["event"] == "settings reloaded"
    assert running.groups() == ["third"]
    assert len(running.digests()) == 2


@pytest.mark.parametrize("half", ["", '[[rules]]\nname = "admins"\nwhen.ro', '[[rules]]\nname = "admins"\n'])
def test_a_half_written_file_is_not_used(running: Running, half: str) -> None:
    running.policy.write_text(half)
    assert running.next_line(0)["event"] == "settings not reloaded"
    assert running.groups() == ["first"]
    running.policy.write_text(POLICY.replace("first", "second"))
    eventually(lambda: running.lines()[-1]["event"] == "settings reloaded")
    assert running.groups() == ["second"]


def test_a_file_that_changes_while_it_is_read_is_not_used(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = reloading.with_reloadable
    passed: list[bool] = []

    def change(*arguments: Any) -> Any:
        if not passed:
            passed.append(True)
            write(running.policy, POLICY.replace("first", "third"))
        return check(*arguments)

    monkeypatch.setattr(reloading, "with_reloadable", change)
    write(running.policy, POLICY.replace("first", "second"))
    line = running.next_line(0)
    assert line["error"] == "The files changed while they were read."
    assert running.next_line(1)["event"] == "settings reloaded"
    assert running.groups() == ["third"]


def test_a_file_that_is_only_touched_changes_nothing(running: Running) -> None:
    running.policy.touch()
    assert running.next_line(0)["changed"] == []
    assert len(running.digests()) == 1
