"""The policy is reloaded while the service runs; other settings need a restart."""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import structlog
from cryptography import x509
from cryptography.x509.oid import NameOID
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import LogCapture

from clustercert.observability import log
from clustercert.policy.decision import policy_digest
from clustercert.server import application, policy_changes, reloading
from clustercert.server.reloading import AppliedSettings, Reloader
from clustercert.server.reloading import Reloadable as Applied
from clustercert.settings import Settings, SettingsError
from support import world as worlds
from support.log_capture import captured_logs
from support.request_client import POLICY, RequestClient
from support.service import Service
from support.stores import Store, execute
from support.wait import eventually
from support.world import World

ADMINS, OTHERS = "clustercert:admins", "team:others"
FROZEN = {"name": "frozen", "deny": "Frozen."}


def rules(*groups: str, **more: object) -> dict[str, object]:
    grant = {"groups": list(groups)} | more
    return {"rules": [{"name": "admin", "when": {"roles": ["admin"]}, "grant": grant}]}


@dataclass
class Reloadable:
    """A running service whose settings can be changed, like those in a file."""

    world: World
    changed: dict[str, object] = field(default_factory=dict)
    broken: bool = False
    fault: type[Exception] | None = None

    def load(self) -> Settings:
        if self.broken:
            raise SettingsError("Invalid settings in clustercert.toml.")
        if self.fault is not None:
            raise self.fault
        return self.world.settings(**self.changed)

    def reload(self, service: Service, reloader: Reloader) -> Sequence[Mapping[str, Any]]:
        """Reload, and return the log lines."""
        with captured_logs(application), captured_logs(reloading) as said:

            async def request() -> None:
                reloader.requested.set()

            service.run(request())
            eventually(lambda: any(line["event"].startswith("settings ") for line in said))
        # Other services in this process may log as well.
        return [line for line in said if line["event"].startswith(("settings ", "policy allows "))]


@dataclass
class Running:
    source: Reloadable
    service: Service
    reloader: Reloader

    def reload(self) -> Mapping[str, Any]:
        return self.source.reload(self.service, self.reloader)[-1]

    def organizations(self) -> list[str]:
        world = self.source.world
        answer = self.service.client.post(
            f"{world.path()}?dryRun=All", json={"duration": 1}, headers=world.people["admin"].headers
        )
        assert answer.status_code == 200, answer.text
        return [str(each) for each in answer.json()["organizations"]]

    def explained_group(self) -> str:
        """The only group that would be in a certificate, by the explained decision."""
        world = self.source.world
        answer = self.service.client.get(
            "/clustercert/v1/policy/explain",
            params={"cluster": world.clusters["plain"].id, "expires_in": "1h"},
            headers=world.people["admin"].headers,
        )
        group, _ = answer.json()["would_sign"]["organizations"]
        return str(group)

    def issued_groups(self) -> list[str]:
        """The organizations in a certificate that is issued now."""
        world = self.source.world
        answer = self.service.client.post(
            world.path(), json={"duration": 1}, headers=world.people["admin"].headers
        )
        [user] = answer.json()["users"]
        leaf = x509.load_pem_x509_certificate(base64.b64decode(user["user"]["client-certificate-data"]))
        return [str(each.value) for each in leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]

    def count(self, what: str, outcome: str) -> float:
        text = self.service.client.get("/metrics").text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "clustercert_reloads_total"
            and sample.labels == {"what": what, "outcome": outcome}
        )


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    source = Reloadable(worlds.make(tmp_path), {"policy": rules(ADMINS)})
    reloader = Reloader(source.load, None)
    with Service(source.load(), reloader=reloader).running() as service:
        yield Running(source, service, reloader)


def test_another_policy_applies_at_once_and_is_recorded(running: Running) -> None:
    assert ADMINS in running.organizations()
    done = running.count("settings", "done")
    running.source.changed = {
        "policy": rules(OTHERS),
        "server": {"request_timeout": 7},
        "api": {"insecure_external": False},
    }
    line = running.reload()
    assert (line["event"], line["log_level"]) == ("settings reloaded", "info")
    assert line["changed"] == ["policy.rules"]
    assert line["needs_restart"] == ["server.request_timeout", "api.insecure_external"]
    assert OTHERS in running.organizations()
    assert ADMINS not in running.organizations()
    assert running.explained_group() == OTHERS
    assert running.count("settings", "done") == done + 1
    store = Store(running.source.world.settings().store_url)
    loaded = [event for event in store.events() if event["kind"] == "policy.loaded"]
    assert [OTHERS in str(event) for event in loaded] == [False, True]


def test_live_certificates_that_the_new_policy_would_refuse_are_counted(running: Running) -> None:
    running.issued_groups()
    capture = LogCapture()

    def compared(policy: dict[str, object]) -> Mapping[str, Any]:
        count = len(capture.entries)
        running.source.changed = {"policy": policy}
        running.reload()
        eventually(lambda: len(capture.entries) > count)
        return capture.entries[-1]

    with patch.object(policy_changes, "logger", structlog.wrap_logger(None, processors=[capture])):
        # The certificate was requested for a day.
        limited = compared(rules(ADMINS, max_lifetime="12h"))
        assert (limited["refused"], limited["shorter"], limited["fewer_groups"]) == (1, 0, 0)
        other = compared(rules(OTHERS))
        assert (other["refused"], other["shorter"], other["fewer_groups"]) == (0, 0, 1)
        frozen = compared({"rules": [FROZEN]})
        assert (frozen["refused"], frozen["examined"], frozen["at_least"]) == (1, 1, False)
        assert frozen["policy_sha256"] == policy_digest(running.source.load().loaded_policy())
        assert frozen["advice"] == "run `clustercert policy replay --live`"
        same = compared(rules(ADMINS))
        assert (same["refused"], same["log_level"], frozen["log_level"]) == (0, "info", "warning")
        assert {each["event"] for each in capture.entries} == {
            "live certificates compared with the new policy"
        }
    assert len(capture.entries) == 4


def test_the_webhook_gets_the_groups_of_the_new_policy(running: Running) -> None:
    running.source.changed = {"policy": rules(OTHERS)}
    running.reload()
    app: Any = running.service.app
    webhook = app.app.default.state.services.webhook
    assert webhook.authorization.policy_groups == webhook.credential_usage.policy_groups == {OTHERS}


def test_no_list_of_rules_differs_from_an_empty_one(tmp_path: Path) -> None:
    source = Reloadable(worlds.make(tmp_path), {"policy": {}})
    reloader = Reloader(source.load, None)
    with Service(source.load(), reloader=reloader).running() as service:
        app: Any = service.app
        services = app.app.default.state
        assert len(services.services.issuance.policy.rules) == 3
        source.changed = {"policy": {"rules": []}}
        assert source.reload(service, reloader)[-1]["changed"] == ["policy.rules"]
        assert services.services.issuance.policy.rules == ()
        # Roles would give groups for five years, and nobody wrote that.
        source.changed = {"policy": {}}
        assert source.reload(service, reloader)[-1]["event"] == "settings not reloaded"
        assert services.services.issuance.policy.rules == ()


def test_without_a_change_nothing_is_recorded(running: Running) -> None:
    assert running.reload()["changed"] == []
    store = Store(running.source.world.settings().store_url)
    assert len([event for event in store.events() if event["kind"] == "policy.loaded"]) == 1


def test_invalid_settings_change_nothing(running: Running) -> None:
    failed = running.count("settings", "failed")
    running.source.broken = True
    line = running.reload()
    assert (line["event"], line["log_level"]) == ("settings not reloaded", "error")
    assert "Invalid settings" in line["error"]
    assert running.count("settings", "failed") == failed + 1
    assert ADMINS in running.organizations()
    running.source.broken = False
    running.source.changed = {"policy": rules(OTHERS)}
    running.reload()
    assert OTHERS in running.organizations()


@pytest.mark.parametrize("fault", [ValueError, RecursionError])
def test_a_reload_that_fails_unexpectedly_does_not_end_later_reloads(
    running: Running, fault: type[Exception]
) -> None:
    """As with a null byte in `policy.file`, or with deeply nested TOML."""
    failed = running.count("settings", "failed")
    running.source.fault = fault
    line = running.reload()
    assert (line["event"], line["exc_info"]) == ("settings not reloaded", True)
    assert running.count("settings", "failed") == failed + 1
    running.source.fault = None
    running.source.changed = {"policy": rules(OTHERS)}
    assert running.reload()["event"] == "settings reloaded"
    assert OTHERS in running.organizations()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({}, "policy: has neither rules nor role_groups"),
        ({"policy": {"allow_system": ["system:masters"]}}, "policy: has neither rules nor role_groups"),
        ({"policy": rules(OTHERS), "data_dir": Path("clustercert-data")}, "data_dir: differs"),
        ({"policy": rules(OTHERS), "database_url": "sqlite+aiosqlite:////o"}, "database_url: differs"),
        ({"policy": rules(OTHERS), "kek_file": None, "service_name": "o"}, "kek_file, service_name: differs"),
    ],
)
def test_settings_from_an_empty_or_half_written_file_change_nothing(
    running: Running, changed: dict[str, object], named: str
) -> None:
    failed = running.count("settings", "failed")
    running.source.changed = changed
    line = running.reload()
    assert line["event"] == "settings not reloaded"
    assert named in line["error"]
    assert running.count("settings", "failed") == failed + 1
    assert ADMINS in running.organizations()


def test_a_policy_whose_example_fails_does_not_apply(running: Running) -> None:
    failed = running.count("settings", "failed")
    example = {"name": "others", "caller": {"roles": ["admin"]}, "expects": {"groups": [ADMINS]}}
    running.source.changed = {"policy": rules(OTHERS) | {"examples": [example]}}
    line = running.reload()
    assert (line["event"], line["log_level"]) == ("settings not reloaded", "error")
    assert f"others: expected allowed; groups {ADMINS}; got allowed; groups {OTHERS}" in line["error"]
    assert running.count("settings", "failed") == failed + 1
    assert ADMINS in running.issued_groups()
    running.source.changed = {"policy": rules(ADMINS, OTHERS) | {"examples": [example]}}
    example["expects"] = {"groups": [OTHERS, ADMINS]}
    assert running.reload()["changed"] == ["policy.rules", "policy.examples"]
    assert {ADMINS, OTHERS} < set(running.issued_groups())


def test_groups_by_role_apply_with_a_warning(running: Running) -> None:
    running.source.changed = {"policy": {"role_groups": True}}
    warning, done = running.source.reload(running.service, running.reloader)
    assert warning["rules"]["admin"] == "1825 days"
    assert done["event"] == "settings reloaded"


def exempt(running: Running, *patterns: str) -> None:
    """Set the exemptions of the cluster `plain`."""
    statement = "UPDATE cluster SET options = json_set(options, '$.exemptions', json(?)) WHERE name = 'plain'"
    execute(running.source.world.database, statement, json.dumps(patterns))


def test_a_policy_whose_groups_a_cluster_exempts_does_not_apply(running: Running) -> None:
    exempt(running, "system:nodes", "oncall-*")
    running.source.changed = {"policy": rules(OTHERS, "{group}")}
    line = running.reload()
    assert line["event"] == "settings not reloaded"
    assert "The cluster tests/eu-de/plain exempts oncall-*" in line["error"]
    assert "template {group} gives" in line["error"]
    assert OTHERS not in running.organizations()
    running.source.changed = {"policy": rules(OTHERS, "team:{group}")}
    assert running.reload()["event"] == "settings reloaded"
    assert OTHERS in running.organizations()


def test_an_exemption_that_the_current_policy_has_too_refuses_no_other_policy(running: Running) -> None:
    running.source.changed = {"policy": rules(ADMINS, "{group}")}
    assert running.reload()["event"] == "settings reloaded"
    exempt(running, "oncall-*")
    running.source.changed = {"policy": rules(OTHERS, "{group}")}
    assert running.reload()["event"] == "settings reloaded"
    assert OTHERS in running.organizations()


def test_a_worker_that_starts_with_exempted_groups_says_so(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "configure", lambda *_: None)  # would end the capture
    exempt(running, "oncall-*")
    running.source.changed = {"policy": rules(OTHERS, "{group}")}
    with captured_logs(application) as said, Service(running.source.load()).running():
        pass
    [line] = [line for line in said if "exempt groups" in line["event"]]
    assert (line["count"], line["clusters"]) == (1, ["tests/eu-de/plain (oncall-* for {group})"])


@pytest.mark.usefixtures("quick_retries")
def test_a_policy_that_cannot_be_recorded_applies_once_the_database_is_back(running: Running) -> None:
    database, failed = running.source.world.database, running.count("settings", "failed")
    execute(database, "ALTER TABLE audit_event RENAME TO away")
    running.source.changed = {"policy": rules(OTHERS)}
    assert running.reload()["event"] == "settings not reloaded"
    # The next attempt fails as well, and no file has changed.
    eventually(lambda: running.count("settings", "failed") >= failed + 2)
    assert ADMINS in running.organizations()
    execute(database, "ALTER TABLE away RENAME TO audit_event")
    eventually(lambda: OTHERS in running.organizations())
    assert OTHERS in running.issued_groups()


def test_a_newer_policy_takes_the_place_of_one_that_could_not_be_recorded(running: Running) -> None:
    database = running.source.world.database
    execute(database, "ALTER TABLE audit_event RENAME TO away")
    running.source.changed = {"policy": rules(OTHERS)}
    assert running.reload()["event"] == "settings not reloaded"
    running.source.changed = {"policy": rules("newer")}
    execute(database, "ALTER TABLE away RENAME TO audit_event")
    eventually(lambda: "newer" in running.organizations())
    events = Store(running.source.world.settings().store_url).events()
    loaded = [event for event in events if event["kind"] == "policy.loaded"]
    assert [OTHERS in str(event) for event in loaded] == [False, False]


def test_the_log_names_the_rules_that_changed_and_the_digest_in_the_event(running: Running) -> None:
    own = [
        {"name": "admin", "when": {"roles": ["admin"]}, "grant": {"groups": [OTHERS]}},
        {"name": "member", "when": {"roles": ["member"]}, "grant": {"groups": ["g"]}},
    ]
    running.source.changed = {"policy": {"rules": own}}
    line = running.reload()
    assert (line["rules_added"], line["rules_changed"]) == (["member"], ["admin"])
    assert "rules_removed" not in line
    events = Store(running.source.world.settings().store_url).events()
    assert [event for event in events if event["kind"] == "policy.loaded"][-1]["subject"] == line[
        "policy_sha256"
    ]


def test_a_worker_that_starts_later_begins_with_the_policy_that_was_applied(
    running: Running, tmp_path: Path
) -> None:
    applied = AppliedSettings(tmp_path / "policy")
    running.reloader.applied = applied
    assert applied.read() is None
    running.source.changed = {"policy": rules(OTHERS)}
    assert running.reload()["event"] == "settings reloaded"
    exempt(running, "oncall-*")
    # Running workers refuse it, so another one must not begin with it.
    running.source.changed = {"policy": rules(OTHERS, "{group}")}
    assert running.reload()["event"] == "settings not reloaded"
    assert applied.read() == Applied.from_settings(running.source.world.settings(policy=rules(OTHERS)))


def test_a_reloaded_policy_offers_and_decides_access_requests(running: Running) -> None:
    requests = RequestClient(running.source.world, running.service.client)
    assert requests.create("admin", "maintainers").status_code == 403
    running.source.changed = {"policy": POLICY}
    running.reload()
    request_id = requests.created("admin", "maintainers")
    assert requests.issue("admin", request_id).status_code == 200
    running.source.changed = {"policy": rules(ADMINS)}
    running.reload()
    assert requests.issue("admin", request_id).status_code == 403
    assert requests.create("admin", "maintainers", cluster="eip").status_code == 403
