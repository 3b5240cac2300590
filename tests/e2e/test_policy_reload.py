"""Two workers follow a policy file that is changed while they serve."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import httpx2

from support import world as worlds
from support.processes import workers
from support.serve_process import Serving, serving
from support.stores import Store, execute
from support.wait import SECONDS, eventually
from support.world import World

RULES = '[[rules]]\nname = "admins"\nwhen.roles = ["admin"]\ngrant.groups = ["GROUP"]\n'


def write(path: Path, group: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(RULES.replace("GROUP", group))
    new.rename(path)


def log_lines(world: World, event: str) -> list[dict[str, Any]]:
    # The last line may be incomplete.
    written = (world.folder / "log").read_text().rpartition("\n")[0]
    lines = (json.loads(line) for line in written.splitlines())
    return [line for line in lines if line["event"] == event]


def exempt(world: World, pattern: str) -> None:
    statement = "UPDATE cluster SET options = json_set(options, '$.exemptions', json(?)) WHERE name = 'plain'"
    execute(world.database, statement, json.dumps([pattern]))


def granted(running: Serving, world: World) -> str:
    """The first group of a certificate, asked for over a connection of its own."""
    url = f"{running.url}{world.path()}?dryRun=All"
    headers = world.people["admin"].headers
    answer = httpx2.post(url, json={"duration": 1}, headers=headers, trust_env=False, timeout=SECONDS)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["organizations"][0])


def test_both_workers_and_a_later_one_follow_the_file(tmp_path: Path) -> None:
    world, policy = worlds.make(tmp_path), tmp_path / "policy.toml"
    write(policy, "first")
    with serving(world, "--workers", "2", POLICY__FILE=policy) as running:
        eventually(lambda: len(log_lines(world, "policy loaded")) == 2)
        assert granted(running, world) == "first"
        write(policy, "second")
        eventually(lambda: len(log_lines(world, "settings reloaded")) == 2)
        assert {granted(running, world) for _ in range(20)} == {"second"}
        # The running workers refuse this one, so the later one must not begin with it.
        exempt(world, "oncall-*")
        write(policy, "{group}")
        eventually(lambda: len(log_lines(world, "settings not reloaded")) >= 2)
        supervisor = running.process.pid
        before = workers(supervisor)
        os.kill(min(before), signal.SIGKILL)
        eventually(lambda: workers(supervisor) - before)
        eventually(lambda: len(log_lines(world, "policy loaded")) == 3)
        assert {granted(running, world) for _ in range(20)} == {"second"}
    first, _, third = log_lines(world, "policy loaded")
    digests = {line["policy_sha256"] for line in log_lines(world, "settings reloaded")}
    assert digests == {third["sha256"]}
    events = [
        event for event in Store(world.settings().store_url).events() if event["kind"] == "policy.loaded"
    ]
    assert [event["subject"] for event in events] == [first["sha256"], third["sha256"]]
