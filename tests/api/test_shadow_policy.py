"""A shadow policy in a running service: differences in the metric, reload, and faults."""

from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from clustercert.server import reloading, shadow_file
from clustercert.server.file_watch import FileWatch
from clustercert.server.reloading import Reloader
from clustercert.settings import SettingsError, load
from support import world as worlds
from support.log_capture import captured_logs
from support.service import Service
from support.wait import eventually
from support.world import World

SHADOW = """
[[rules]]
name = "admins"
when.roles = ["admin"]
grant.groups = ["new"]
grant.max_lifetime = "8h"
"""
FAILING = '[[examples]]\nname = "an admin"\ncaller.roles = ["admin"]\nexpects.refused = true\n'
CONFIG = """
[metrics]
loopback = true

[policy]
shadow_file = "SHADOW"
MORE
[[policy.rules]]
name = "members"
when.roles = ["member", "admin"]
grant.groups = ["old"]
grant.max_lifetime = "24h"
"""


@dataclass
class Running:
    world: World
    service: Service
    shadow: Path
    log: Sequence[MutableMapping[str, Any]]

    def request(self, person: str) -> list[str]:
        """The groups that a person gets, or the message of the refusal."""
        answer = self.service.client.post(
            f"{self.world.path()}?dryRun=All",
            json={"duration": -1},
            headers=self.world.people[person].headers,
        )
        body = answer.json()
        return [str(each) for each in body.get("organizations", [body.get("message")])]

    def count(self, name: str, **labels: str) -> float:
        text = self.service.client.get("/metrics").text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"clustercert_{name}_total" and sample.labels == labels
        )

    def lines(self, event: str) -> list[MutableMapping[str, Any]]:
        return [line for line in self.log if line["event"] == event]


@pytest.fixture(params=["", "[limits]\nlive_certificates = 1000\n"], ids=["", "limits"])
def running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Running]:
    monkeypatch.setattr(reloading, "POLL_SECONDS", 0.05)
    world = worlds.make(tmp_path)
    shadow, config = tmp_path / "shadow.toml", tmp_path / "clustercert.toml"
    shadow.write_text(SHADOW)
    config.write_text(
        f"data_dir = '{tmp_path / 'data'}'\nkek_file = '{tmp_path / 'kek'}'\n"
        + CONFIG.replace("SHADOW", str(shadow)).replace("MORE", request.param)
    )
    reloader = Reloader(partial(load, config), None, FileWatch(config))
    with (
        Service(load(config), reloader=reloader).running() as service,
        captured_logs(shadow_file) as said,
    ):
        yield Running(world, service, shadow, said)


def write(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def test_differences_are_in_the_metric_and_callers_do_not_see_them(running: Running) -> None:
    kinds = ("allow_to_deny", "deny_to_allow", "shorter", "longer", "other_groups", "other_username")
    before = {kind: running.count("shadow_differences", kind=kind) for kind in kinds}
    assert running.request("admin")[0] == "old"
    assert running.request("member")[0] == "old"
    assert "Roles with access" in running.request("reader")[0]
    after = {kind: running.count("shadow_differences", kind=kind) for kind in kinds}
    assert {kind: after[kind] - before[kind] for kind in kinds if after[kind] > before[kind]} == {
        "allow_to_deny": 1,
        "shorter": 1,
        "other_groups": 1,
    }


def test_a_changed_shadow_policy_is_reloaded(running: Running) -> None:
    write(running.shadow, SHADOW.replace('"8h"', '"24h"').replace("new", "old"))
    eventually(lambda: running.lines("shadow policy loaded"))
    same = running.count("shadow_decisions", outcome="same")
    assert running.request("admin")[0] == "old"
    assert running.count("shadow_decisions", outcome="same") == same + 1


@pytest.mark.parametrize(
    "fault", [SHADOW + FAILING, "", "[[rules]]\nname = 1", "[[rule", "rules = " + "[" * 5000]
)
def test_a_faulty_shadow_policy_is_off_and_the_service_continues(running: Running, fault: str) -> None:
    failed = running.count("reloads", what="shadow", outcome="failed")
    write(running.shadow, fault)
    eventually(lambda: running.lines("shadow policy is off"))
    assert running.count("reloads", what="shadow", outcome="failed") >= failed + 1
    different = running.count("shadow_decisions", outcome="different")
    assert running.request("admin")[0] == "old"
    assert running.count("shadow_decisions", outcome="different") == different
    write(running.shadow, SHADOW)
    eventually(lambda: running.lines("shadow policy loaded"))
    assert running.request("admin")[0] == "old"
    assert running.count("shadow_decisions", outcome="different") == different + 1


def test_the_service_starts_with_a_faulty_shadow_policy(tmp_path: Path) -> None:
    world = worlds.make(tmp_path)
    policy = {"preset": "production", "shadow_file": tmp_path / "missing.toml"}
    with Service(world.settings(policy=policy)).running() as service:
        running = Running(world, service, tmp_path, [])
        assert running.request("admin")[0] == "clustercert:admins"


def test_settings_from_the_environment_that_belong_to_the_file_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate is in the settings file, and its key in the environment."""
    shadow, config = tmp_path / "shadow.toml", tmp_path / "clustercert.toml"
    shadow.write_text(SHADOW)
    config.write_text(
        f"[server]\ntls_certificate = '/c'\n[policy]\npreset = 'strict'\nshadow_file = '{shadow}'\n"
    )
    monkeypatch.setenv("CLUSTERCERT_SERVER__TLS_KEY", "/k")
    policy = shadow_file.load_shadow(load(config))
    assert policy is not None
    assert policy.groups == ("new",)


def test_a_fault_in_the_shadow_file_is_named_with_its_place(tmp_path: Path) -> None:
    shadow = tmp_path / "shadow.toml"
    shadow.write_text(SHADOW.replace('"8h"', '"8 hours"'))
    with pytest.raises(SettingsError, match=f"{shadow}:6:.*max_lifetime"):
        shadow_file.load_policy(shadow)


def test_a_shadow_file_may_stand_beside_a_policy_file_but_not_in_one(tmp_path: Path) -> None:
    policy, config = tmp_path / "policy.toml", tmp_path / "clustercert.toml"
    config.write_text(f"[policy]\nfile = '{policy}'\nshadow_file = 'shadow.toml'\n")
    policy.write_text(SHADOW)
    assert load(config).policy.shadow_file == Path("shadow.toml")
    policy.write_text("shadow_file = 'other.toml'\n" + SHADOW)
    with pytest.raises(SettingsError, match="names another file"):
        load(config)
