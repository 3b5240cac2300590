"""`clustercert audit tail` and `show` with the logins of an auditor, a project's admin and a developer."""

import json
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from clustercert.cli.login.profile import Profile, save
from support import world as worlds
from support.demo_process import COMMAND, uncovered
from support.ports import port_of, reserve
from support.remote_site import RemoteSite
from support.serve_process import end, environment_of, start
from support.wait import SECONDS, eventually, line_with
from support.world import World

pytestmark = pytest.mark.slow


def test_auditors_read_all_events_over_the_service(place: RemoteSite) -> None:
    name = place.issue(place.alice)

    def issued() -> list[dict[str, Any]]:
        lines = place.dora.output("audit", "tail", "--kind", "certificate.issued", "-o", "json").splitlines()
        return [event for event in map(json.loads, lines) if event["subject"] == name]

    [event] = eventually(issued)
    assert event["detail"]["cluster"]["name"] == "prod"
    shown = place.dora.output_json("audit", "show", str(event["place"]))
    assert {field: shown[field] for field in event} == event
    assert shown["proved_in"] > event["place"]
    _, lines = place.terminal(place.dora, "audit", "tail", "--kind", "certificate.issued")
    assert lines[0].split() == ["PLACE", "AT", "KIND", "SUBJECT", "ACTOR"]
    assert lines[-1].split()[-2:] == [name[:16], "Default/alice"]
    fields = dict(
        line.split(maxsplit=1)
        for line in place.dora.output("audit", "show", str(event["place"])).splitlines()
    )
    assert (fields["actor"], fields["actor_name"]) == (event["actor"], "Default/alice")
    assert fields["project_name"] == "Default/eu-de"


def test_users_are_named_in_filters(place: RemoteSite) -> None:
    place.issue(place.alice)

    def listed(*options: str) -> list[dict[str, Any]]:
        kind = ("--kind", "certificate.issued")
        lines = place.dora.output("audit", "tail", *kind, *options, "-o", "json").splitlines()
        return list(map(json.loads, lines))

    assert eventually(lambda: listed("--actor", "alice"))
    alice = place.own(place.alice)[0]["user_id"]
    for name in ("alice", "Default/alice", alice):
        assert {event["actor"] for event in listed("--actor", name)} == {alice}
    created = place.dora.output("audit", "tail", "--kind", "user.created", "--subject", "alice", "-o", "json")
    assert json.loads(created)["subject"] == alice
    assert place.dora.run("audit", "tail", "--actor", "nobody").err == "No events found.\n"
    error = place.bob.run("audit", "tail", "--project", "eu-de", "--actor", "alice").err
    assert error == "No events found. Give ids to --subject and --actor, not names.\n"


def test_admins_read_the_events_of_their_project(place: RemoteSite) -> None:
    bob = place.bob
    assert "Add --project PROJECT" in bob.failure(4, "audit", "tail")
    added = json.loads(
        bob.output("audit", "tail", "--project", "eu-de", "--kind", "cluster.added", "-o", "json")
    )
    assert added["detail"]["name"] == "prod"
    show = ("audit", "show", str(added["place"]), "--project")
    assert bob.output_json(*show, "eu-de")["subject"] == added["subject"]
    assert "Event not found" in bob.failure(5, *show, "eu-nl")
    assert place.alice.failure(4, "audit", "tail", "--project", "eu-de")


@dataclass(frozen=True)
class LogShipper:
    """A world whose audit events `audit tail` writes to a file.

    Attributes:
        shipped: the file, a JSON object in each line.
        port: of the service, also after a restart.
    """

    world: World
    variables: Mapping[str, str]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def shipped(self) -> Path:
        return self.world.folder / "events.jsonl"

    @property
    def cursor(self) -> Path:
        return self.world.folder / "cursor"

    @contextmanager
    def serving(self) -> Iterator[None]:
        process = start(("--port", str(self.port)), self.variables)
        try:
            line_with(process.stderr, "Listening on")
            yield
        finally:
            end(process)

    @contextmanager
    def tail(self, *options: str) -> "Iterator[subprocess.Popen[str]]":
        command = [*COMMAND, "audit", "tail", "--cursor-file", str(self.cursor), "-o", "json", *options]
        with (
            self.shipped.open("ab") as out,
            subprocess.Popen(
                command, env=self.variables, stdout=out, stderr=subprocess.PIPE, text=True
            ) as process,
        ):
            try:
                yield process
            finally:
                process.kill()

    def places(self) -> list[int]:
        lines = self.shipped.read_text().splitlines()
        return [json.loads(line)["place"] for line in lines if line.endswith("}")]

    def issue(self) -> None:
        """Issue a certificate, and wait until an event is shipped."""
        before, headers = len(self.places()), self.world.people["member"].headers
        path = f"{self.url}{self.world.path()}"
        httpx2.post(
            path, headers=headers, json={"duration": 1}, trust_env=False, timeout=SECONDS
        ).raise_for_status()
        eventually(lambda: len(self.places()) > before)


@pytest.fixture
def shipper(tmp_path: Path) -> Iterator[LogShipper]:
    world = worlds.make(tmp_path)
    variables = {**uncovered(environment_of(world)), "XDG_CONFIG_HOME": str(tmp_path)}
    with reserve() as port:
        shipper = LogShipper(world, variables, port_of(port))
        save(
            "default",
            Profile(shipper.url, "auditor", None, None, token=world.people["auditor"].token),
            variables,
        )
        yield shipper


@pytest.mark.full
def test_a_log_shipper_gets_each_event_once(shipper: LogShipper) -> None:
    """The service and the command restart."""
    with ExitStack() as first:
        first.enter_context(shipper.serving())
        with shipper.tail("-f") as tail:
            shipper.issue()
            first.close()
            line_with(tail.stderr, "Waiting for the service.")
            with shipper.serving():
                shipper.issue()
                tail.send_signal(signal.SIGTERM)
                tail.communicate(timeout=SECONDS)
    assert tail.returncode == -signal.SIGTERM
    count = len(shipper.places())
    assert shipper.places() == list(range(count))
    assert json.loads(shipper.cursor.read_text())["next"] == count
    # After a power failure, a line can be cut. The cursor is before this line.
    shipper.cursor.unlink()
    shipper.shipped.write_text(shipper.shipped.read_text().splitlines()[0][:-20])
    with shipper.serving(), shipper.tail() as tail:
        assert tail.wait(SECONDS) == 0
    assert shipper.places()[:count] == list(range(count))
