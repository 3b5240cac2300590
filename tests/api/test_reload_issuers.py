"""OIDC issuers are reloaded while the service runs, with the policy."""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from clustercert.authn.access_keys import WRONG_SIGNATURES
from clustercert.authn.oidc import keys
from clustercert.client.auth import AccessKeyAuth
from clustercert.client.connection import HttpRequest
from clustercert.server import reloading
from clustercert.server.reloading import AppliedSettings, Reloader
from clustercert.settings import Settings, SettingsError
from support import world as worlds
from support.log_capture import captured_logs
from support.oidc import IssuerServer, new_key
from support.service import BASE_URL, Service
from support.stores import Store, execute
from support.wait import eventually
from support.world import World

OPERATOR = {"role": "operator", "service": True, "groups": ["team-blue"]}


@dataclass
class Running:
    """A running service, two issuers, and the issuers in the settings, which tests change."""

    world: World
    sso: IssuerServer
    ci: IssuerServer
    service: Service = field(init=False)
    reloader: Reloader = field(init=False)
    issuers: list[dict[str, Any]] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)
    fault: str = ""

    def load(self) -> Settings:
        if self.fault:
            raise SettingsError(self.fault)
        identity = {"region": worlds.REGION, "issuers": self.issuers} | self.more
        return self.world.settings(
            policy={"rules": [{"grant": {"groups": ["{group.id}"]}}]}, identity=identity
        )

    def of(self, issuer: IssuerServer, **changed: object) -> dict[str, Any]:
        name = "sso" if issuer is self.sso else "ci"
        grant = {"role": "member", "groups": ["team-*"]}
        return issuer.settings(name=name, projects=[self.world.project.id], roles=[grant]) | changed

    def reload(self, *issuers: dict[str, Any]) -> Mapping[str, Any]:
        """Reload with these issuers. Returns the log line."""
        self.issuers = [*issuers]
        said: Sequence[MutableMapping[str, Any]]
        with captured_logs(reloading) as said:
            self.service.run(self._request())
            return eventually(
                lambda: next((line for line in said if line["event"].startswith("settings ")), {})
            )

    async def _request(self) -> None:
        self.reloader.requested.set()

    def get(self, token: str, path: str = "/v3/projects") -> httpx2.Response:
        return self.service.client.get(path, headers={"Authorization": f"Bearer {token}"})

    def statuses(self) -> tuple[int, int]:
        """The status of a login by each issuer."""
        return self.get(self.sso.token()).status_code, self.get(self.ci.token()).status_code

    def events(self) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = Store(self.world.settings().store_url).events()
        return [event for event in events if event["kind"] == "issuers.loaded"]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    world = worlds.make(tmp_path)
    for name in ("sso", "ci"):
        (tmp_path / name).mkdir()
    with IssuerServer(tmp_path / "sso").running() as sso, IssuerServer(tmp_path / "ci").running() as ci:
        made = Running(world, sso, ci)
        made.reloader = Reloader(made.load, None)
        with Service(made.load(), reloader=made.reloader).running() as made.service:
            yield made


def test_issuers_are_added_changed_and_removed(running: Running) -> None:
    assert running.statuses() == (401, 401)
    line = running.reload(running.of(running.sso))
    assert (line["event"], line["changed"], line["issuers_added"], line["needs_restart"]) == (
        "settings reloaded",
        ["identity.issuers"],
        ["sso"],
        [],
    )
    assert running.statuses() == (200, 401)
    running.reload(running.of(running.sso), running.of(running.ci))
    assert running.statuses() == (200, 200)
    line = running.reload(running.of(running.ci), running.of(running.sso, audiences=["other"]))
    assert (line["issuers_changed"], "issuers_removed" in line) == (["sso"], False)
    assert running.statuses() == (401, 200)
    assert running.reload()["issuers_removed"] == ["ci", "sso"]
    assert running.statuses() == (401, 401)


def test_a_cached_token_of_a_removed_issuer_stops_at_once(running: Running) -> None:
    running.reload(running.of(running.sso))
    token = running.sso.token()
    assert [running.get(token).status_code for _ in range(3)] == [200, 200, 200]
    running.reload()
    assert running.get(token).status_code == 401
    running.reload(running.of(running.sso))
    assert running.get(token).status_code == 200


def test_changed_roles_count_for_cached_tokens(running: Running) -> None:
    running.reload(running.of(running.sso))
    token, events = running.sso.token(), "/clustercert/v1/events"
    assert (len(running.get(token).json()["projects"]), running.get(token, events).status_code) == (1, 403)
    running.reload(running.of(running.sso, roles=[OPERATOR]))
    assert (running.get(token).json()["projects"], running.get(token, events).status_code) == ([], 200)
    running.reload(running.of(running.sso, claims={"acr": ["gold"]}))
    assert running.get(token).status_code == 401


def test_known_keys_go_on_if_the_issuer_is_away_during_a_reload(running: Running) -> None:
    running.reload(running.of(running.sso))
    assert running.statuses()[0] == 200
    running.sso.stop()
    running.reload(running.of(running.sso, roles=[]), running.of(running.ci))
    assert running.statuses() == (200, 200)


def test_keys_of_an_added_issuer_are_kept_up_to_date_and_those_of_a_removed_one_are_not(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "REFRESH_SECONDS", 0.05)
    running.reload(running.of(running.sso))
    eventually(lambda: running.sso.requests.count("/keys") > 2)
    running.reload(running.of(running.sso, roles=[]), running.of(running.ci))
    before = running.sso.requests.count("/keys")
    eventually(lambda: running.sso.requests.count("/keys") > before + 2)
    running.reload(running.of(running.ci))
    before, others = len(running.sso.requests), len(running.ci.requests)
    eventually(lambda: len(running.ci.requests) > others + 6)
    # A fetch may have been under way, which is two requests.
    assert len(running.sso.requests) <= before + 2


def test_a_key_that_is_rotated_after_a_reload_is_found(running: Running) -> None:
    running.reload(running.of(running.sso))
    running.reload(running.of(running.sso, leeway="30s"))
    running.sso.publish(*running.sso.keys, new_key("rotated"))
    assert running.statuses()[0] == 200


def test_a_locked_access_key_stays_locked_after_a_reload(running: Running) -> None:
    access_key, secret = running.world.access_key

    def status(secret: str) -> int:
        request = HttpRequest("GET", "/v3/auth/projects", {"Host": BASE_URL.removeprefix("http://")}, b"")
        headers = AccessKeyAuth(access_key, secret).headers(request)
        return running.service.client.get(request.target, headers=headers).status_code

    assert status(secret) == 200
    assert [status("guess") for _ in range(WRONG_SIGNATURES)] == [401] * WRONG_SIGNATURES
    for issuers in ([running.of(running.sso)], [running.of(running.ci)], []):
        assert running.reload(*issuers)["event"] == "settings reloaded"
        assert status(secret) == 401


def test_faulty_settings_leave_the_issuers_in_use(running: Running) -> None:
    running.reload(running.of(running.sso))
    running.fault = "Invalid settings in clustercert.toml."
    assert running.reload()["event"] == "settings not reloaded"
    assert running.statuses() == (200, 401)
    running.fault = ""
    running.more = {"built_in": False}
    assert running.reload(running.of(running.ci))["needs_restart"] == ["identity.built_in"]
    assert running.statuses() == (401, 200)


def test_an_issuer_with_the_name_of_a_domain_does_not_apply(running: Running) -> None:
    name = running.world.project.domain.name
    running.reload(running.of(running.sso))
    said = running.reload(running.of(running.sso), running.of(running.ci, name=name))
    assert said["event"] == "settings not reloaded"
    assert f"A domain has the name of an issuer in the settings: {name}." in said["error"]
    assert running.statuses() == (200, 401)


def test_after_a_reload_no_new_domain_has_the_name_of_an_issuer(running: Running) -> None:
    headers = running.world.people["operator"].headers | {"Content-Type": "application/json"}

    def create() -> int:
        path = "/clustercert/v1/domains/ci"
        return running.service.client.put(path, content=b"{}", headers=headers).status_code

    running.reload(running.of(running.sso), running.of(running.ci))
    assert create() == 409
    running.reload(running.of(running.sso))
    assert create() == 201


@pytest.mark.usefixtures("quick_retries")
def test_issuers_that_can_not_be_recorded_do_not_apply(running: Running) -> None:
    running.reload(running.of(running.sso))
    execute(running.world.database, "ALTER TABLE audit_event RENAME TO away")
    assert running.reload(running.of(running.ci))["event"] == "settings not reloaded"
    assert running.statuses()[0] == 200
    execute(running.world.database, "ALTER TABLE away RENAME TO audit_event")
    eventually(lambda: running.statuses() == (401, 200))


def test_changes_are_recorded_once_and_without_the_proxys_password(running: Running) -> None:
    assert running.events() == []
    proxied = running.of(running.ci, proxy="http://user:secret@127.0.0.1:1", max_age="1h")
    running.reload(running.of(running.sso, roles=[]))
    running.reload(running.of(running.sso, roles=[]))
    running.reload(proxied)
    running.reload()
    first, second, third = running.events()
    assert [each["name"] for each in first["detail"]["issuers"]] == ["sso"]
    assert (first["detail"]["before"], second["detail"]["before"]) == (None, first["subject"])
    [issuer] = second["detail"]["issuers"]
    assert (issuer["projects"], issuer["max_age"]) == ([running.world.project.id], 3600)
    assert "secret" not in str(second)
    assert third["detail"]["issuers"] == []


def test_a_worker_that_starts_later_begins_with_the_issuers_that_were_applied(
    running: Running, tmp_path: Path
) -> None:
    running.reloader.applied = applied = AppliedSettings(tmp_path / "settings")
    at_the_start = running.load()
    running.reload(running.of(running.sso))
    expected = running.load().identity
    found = applied.read()
    assert found is not None
    assert found.in_settings(at_the_start).identity == expected
