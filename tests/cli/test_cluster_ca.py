"""`clustercert cluster ca`: rotations by commands. The service is real, the API servers are the tests' doubles."""

import contextlib
import json
import os
import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch
from urllib.parse import urlsplit

import pytest
from cryptography import x509

from support.apiserver import ApiServer
from support.ca_rotation import NewRotation, RotatingService, Rotation, new_rotations, rotating_service
from support.command_line import CommandResult, Operator, run_in_terminal
from support.page_steps import new_reader, steps_below
from support.store_commands import on_store

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("home")]
NOWHERE = "https://127.0.0.1:1"


@dataclass(frozen=True)
class Machine(Operator):
    """The machine of the service."""

    def run(self, *arguments: str | Path, **variables: str) -> CommandResult:
        with patch.dict(os.environ, variables):
            return super().run(*arguments)

    def screen(self, *arguments: str, typed: str = "") -> tuple[int, list[str]]:
        """The exit code and the lines of a command in a terminal of 80 columns."""
        code, text = run_in_terminal(["--config", str(self.config), *on_store(arguments)], typed)
        return code, re.sub(r"\x1b\[[0-9;]*[mK]|\r", "", text).splitlines()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RotatingService]:
    with rotating_service(tmp_path_factory.mktemp("rotation")) as running:
        yield running


@pytest.fixture
def operator(site: RotatingService) -> Machine:
    """An operator on the machine of the service."""
    found = Machine(site.world.folder)
    found.configure()
    return found


@pytest.fixture
def new(site: RotatingService, tmp_path: Path) -> Iterator[NewRotation]:
    with new_rotations(site, tmp_path) as start:
        yield start


def trust(operator: Machine, rotation: Rotation) -> None:
    """Write the printed bundle to the API servers."""
    bundle = operator.output("cluster", "ca", "show", rotation.cluster_id, "--bundle").encode()
    for double in rotation.doubles:
        double.trust(bundle)


def reach(operator: Machine, rotation: Rotation, state: str) -> Any:
    """What `status` shows, once the rotation is in this state."""
    rotation.reach(state)
    return operator.output_json("cluster", "ca", "status", rotation.cluster_id)


def follow(heading: str, operator: Machine, rotation: Rotation, folder: Path) -> None:
    """Follow the page for a rotation with two API servers."""
    [found] = steps_below("docs/replace-a-ca.md", heading)
    name, addresses = name_of(rotation), rotation.get("")["api_servers"]
    machine = new_reader(folder / "home", CLUSTERCERT_CONFIG=str(operator.config))
    machine.words |= {
        "ca status prod": f"ca status {name} --local",
        "ca prove prod": f"ca prove {name} --local",
        "acme/eu-de/prod": f"tests/eu-de/{name}",
        # No API server has reported a use.
        "used_last_hour    1": "used_last_hour 0",
        "in 7h31m   26s ago": "in 7h31m -",
        "https://10.0.0.5:6443": addresses[0],
        "https://10.0.0.6:6443": addresses[1],
        "anna": "member",
        "acme/olga": rotation.get()["started_by"],
    }
    machine.follow_steps(found)


def name_of(rotation: Rotation) -> str:
    return str(rotation.get("")["name"])


def test_a_whole_rotation_by_commands(new: NewRotation, operator: Machine, tmp_path: Path) -> None:
    rotation = new(2)
    name, cluster = name_of(rotation), rotation.cluster_id
    old = rotation.issue()

    planned = operator.run("cluster", "ca", "rotate", name, "--dry-run")
    assert planned.code == 0
    assert re.search(r"^member +1 ", planned.out, re.MULTILINE)
    assert planned.err.endswith("Dry run: nothing was changed.\n")
    never = operator.error("cluster", "ca", "status", name)
    assert never.startswith("The client CA of this cluster was never rotated.")

    started = operator.run("cluster", "ca", "rotate", name)
    assert started.code == 0, started.err
    assert re.search(r"^state +planned$", started.out, re.MULTILINE)
    assert f"`clustercert kubernetes setup tests/eu-de/{name} --out DIR --force`" in started.err
    assert (
        "keep the cluster's own CAs, and replace clustercert's CAs with the old and the new CA" in started.err
    )
    assert re.search(
        r"^next +\w{32}, signer local, until ", operator.output("cluster", "ca", "show", name), re.MULTILINE
    )
    out = tmp_path / "control-plane"
    written = operator.run("kubernetes", "setup", name, "--out", out, "--webhook-url", NOWHERE)
    assert written.code == 0, written.err
    assert "client-ca.pem has two client CAs, because a rotation is running." in written.err
    assert len(x509.load_pem_x509_certificates((out / "client-ca.pem").read_bytes())) == 2

    trust(operator, rotation)
    draining = reach(operator, rotation, "draining")
    assert draining["safe_at"] == draining["old_ca_holders"]["until"]
    follow("See the progress", operator, rotation, tmp_path)
    shown = operator.run("cluster", "ca", "status", name)
    assert re.search(r"^accept_new +2/2$", shown.out, re.MULTILINE)
    for double in rotation.doubles:
        assert re.search(rf"^{double.url} +accepted +- ", shown.out, re.MULTILINE)
    assert re.search(r"^member +1 ", shown.out, re.MULTILINE)
    assert "(valid now: 1)" in shown.err

    refused = operator.run("cluster", "ca", "complete", name)
    assert (refused.code, "alid certificates of the old CA: 1" in refused.err) == (1, True)
    assert "`--force --holders 1`" in refused.err
    asked = operator.run("cluster", "ca", "complete", name, "--force")
    assert (asked.code, asked.out) == (2, "")
    assert "The holders of all these certificates lose access: member (1)." in asked.err
    assert asked.err.endswith(
        "There is no terminal to ask for the number of certificates that lose access: add --holders N.\n"
    )
    assert "certificates" in operator.error("cluster", "ca", "complete", name, "--force", "--holders", "2")
    completing = operator.run("cluster", "ca", "complete", name, "--force", "--holders", "1")
    assert completing.code == 0, completing.err
    assert re.search(r"^refuse_old +0/2$", completing.out, re.MULTILINE)
    assert (
        f"`clustercert credential tests/eu-de/{name} --profile NAME --refresh >/dev/null`" in completing.err
    )
    assert "keep the cluster's own CAs, and replace clustercert's CAs with the new CA." in completing.err

    trust(operator, rotation)
    reach(operator, rotation, "complete")
    assert [old.status_at(double) for double in rotation.doubles] == [401, 401]
    assert len(x509.load_pem_x509_certificates(rotation.bundle())) == 1
    assert "Nothing." in operator.run("cluster", "ca", "status", name).err
    listed = operator.output_json("cluster", "ca", "status")
    assert cluster not in {each["id"] for each in listed}
    assert cluster in {each["id"] for each in operator.output_json("cluster", "ca", "status", "--all")}


def test_several_clusters_and_one_that_fails(new: NewRotation, operator: Machine) -> None:
    first, second, third = new(), new(), new()
    names = [name_of(each) for each in (first, second, third)]
    operator.output("cluster", "ca", "rotate", names[1])
    done = operator.run("cluster", "ca", "rotate", *names)
    assert done.code == 1
    heading, *lines = done.out.splitlines()
    assert heading.split()[:5] == ["CLUSTER", "PROJECT", "STATE", "ACCEPT-NEW", "REFUSE-OLD"]
    assert [line.split()[:4] for line in lines] == [
        [name, "eu-de", "planned", "0/1"] for name in (names[0], names[2])
    ]
    assert f"Error: tests/eu-de/{names[1]}: A rotation of the cluster's client CA is running" in done.err
    assert (
        f"Next: tests/eu-de/{names[0]}, tests/eu-de/{names[2]}: On every API server, in the file" in done.err
    )
    ids = {each.cluster_id for each in (first, second, third)}
    assert ids <= {each["id"] for each in operator.output_json("cluster", "ca", "status")}
    assert "never rotated" in operator.run("cluster", "ca", "status", names[0], "plain").err

    # With --all, the clusters without a rotation are left out.
    aborted = operator.run("cluster", "ca", "abort", "--all", "-o", "json")
    assert aborted.code == 0, aborted.err
    assert ids <= {each["id"] for each in json.loads(aborted.out)}
    assert {each["state"] for each in json.loads(aborted.out)} == {"aborted"}
    assert aborted.err.count("Key of the client CA ") >= 3
    assert operator.run("cluster", "ca", "status").err == "No rotation of a client CA is running.\n"
    nothing = operator.error("cluster", "ca", "abort", "--all")
    assert nothing == "None of these clusters has a running rotation."


def test_an_abort_before_and_after_issuing(new: NewRotation, operator: Machine, tmp_path: Path) -> None:
    rotation = new()
    name = name_of(rotation)
    operator.output("cluster", "ca", "rotate", name)
    tried = operator.run("cluster", "ca", "abort", name, "--dry-run")
    assert (tried.code, "Key of" in tried.err) == (0, False)
    assert operator.output_json("cluster", "ca", "status", name)["state"] == "planned"
    ended = operator.run("cluster", "ca", "abort", name)
    assert re.search(r"^state +aborted$", ended.out, re.MULTILINE)
    assert "replace clustercert's CAs with the CA that signs as before." in ended.err

    operator.output("cluster", "ca", "rotate", name)
    trust(operator, rotation)
    draining = reach(operator, rotation, "draining")
    assert re.search(r"^retiring +", operator.output("cluster", "ca", "show", name), re.MULTILINE)
    # An API server that does not answer keeps the old CA from signing.
    addresses = ("--api-server", rotation.doubles[0].url)
    operator.output("cluster", "update", name, *addresses, "--api-server", "https://127.0.0.1:1")
    follow("Which API servers", operator, rotation, tmp_path)
    reversed_ = operator.run("cluster", "ca", "abort", name)
    assert re.search(r"^reverses +yes$", reversed_.out, re.MULTILINE)
    # A repeated abort does not turn it around again.
    assert operator.run("cluster", "ca", "abort", "--all").code == 0
    repeated = operator.output_json("cluster", "ca", "status", name)
    assert (repeated["state"], repeated["reverses"]) == ("planned", True)
    operator.output("cluster", "update", name, *addresses)
    back = reach(operator, rotation, "draining")
    assert back["new_ca"]["id"] == draining["old_ca"]["id"]
    completed = operator.run("cluster", "ca", "complete", name, "--force")
    assert completed.code == 0, completed.err
    trust(operator, rotation)
    reach(operator, rotation, "complete")


class Tunnel(socketserver.ThreadingTCPServer):
    """An HTTP proxy. Whatever address it is asked for, it connects to one API server."""

    def __init__(self, double: ApiServer) -> None:
        self.target = urlsplit(double.url)
        super().__init__(("127.0.0.1", 0), Connection)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()


class Connection(socketserver.BaseRequestHandler):
    """A connection to the proxy."""

    server: Tunnel

    def handle(self) -> None:
        target = self.server.target
        with socket.create_connection((target.hostname, target.port)) as upstream:
            self.request.recv(65536)
            self.request.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            there = threading.Thread(target=copy, args=(self.request, upstream))
            there.start()
            copy(upstream, self.request)
            there.join()


def copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(65536):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)


def test_an_operator_proves_from_elsewhere(new: NewRotation, operator: Machine) -> None:
    """The service has no route to the registered address. The operator reaches it through a proxy."""
    rotation = new()
    name = name_of(rotation)
    put = rotation.send("PUT", "", rotation.get("") | {"api_servers": [NOWHERE]})
    assert put.status_code == 200, put.text
    operator.output("cluster", "ca", "rotate", name)
    silent = operator.run("cluster", "ca", "prove", name)
    assert (silent.code, silent.out.split()[5:9]) == (1, [NOWHERE, "new", "failed", "accepted"])
    assert "Connection refused" in silent.out
    assert f"is not proved at {NOWHERE}" in silent.err

    with Tunnel(rotation.doubles[0]) as tunnel:

        def prove() -> CommandResult:
            return operator.run("cluster", "ca", "prove", name, https_proxy=tunnel.url, no_proxy="")

        early = prove()
        assert (early.code, early.out.split()[5:9]) == (1, [NOWHERE, "new", "refused", "accepted"])
        trust(operator, rotation)
        assert prove().code == 0
        draining = reach(operator, rotation, "draining")
        assert draining["api_servers"][0]["by"].startswith("cli:")
        operator.output("cluster", "ca", "complete", name)
        trust(operator, rotation)
        proved = prove()
        assert [line.split()[:3] for line in proved.out.splitlines()[1:]] == [
            [NOWHERE, "new", "accepted"],
            [NOWHERE, "old", "refused"],
        ]
        reach(operator, rotation, "complete")
    ended = operator.error("cluster", "ca", "prove", name)
    assert "so there is nothing to prove" in ended


def test_80_columns_are_enough_and_the_number_is_typed(new: NewRotation, operator: Machine) -> None:
    rotation = new(2)
    name = name_of(rotation)
    rotation.issue()
    operator.output("cluster", "ca", "rotate", name)
    trust(operator, rotation)
    reach(operator, rotation, "draining")
    for arguments in (("status",), ("status", name), ("show", name)):
        code, lines = operator.screen("cluster", "ca", *arguments)
        assert code == 0, lines
        assert [line for line in lines if len(line) > 80 and "   " in line] == []
    code, lines = operator.screen("cluster", "ca", "status")
    [heading] = [line.split() for line in lines if line.startswith("CLUSTER ")]
    assert heading[:4] == ["CLUSTER", "PROJECT", "STATE", "ACCEPT-NEW"]
    [row] = [line.split() for line in lines if line.startswith(name)]
    assert row[2:4] == ["draining", "2/2"]
    code, lines = operator.screen("cluster", "ca", "complete", name, "--force", typed="1\n")
    assert code == 0, lines
