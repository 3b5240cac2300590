"""Names for completion: from where they come, and what happens if they don't."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from clustercert.cli.completion import is_plain
from clustercert.cli.credential import cache
from clustercert.cli.kubeconfig import entries
from clustercert.cli.kubeconfig.document import KubeconfigDocument
from clustercert.cli.login import profile
from clustercert.cli.login.profile import Profile
from clustercert.model.kubeconfigs import ClusterRef
from support.command_line import Operator
from support.wait import SECONDS, eventually

OPERATOR = {
    "id": "e" * 32,
    "issuer": "built-in",
    "name": "okapi",
    "domain": "zoo",
    "service_roles": ["operator"],
    "projects": [],
}
PROJECT = "a" * 32
OWN = {"id": PROJECT, "name": "eu-de", "domain": "zoo", "domain_id": "d" * 32, "roles": ["member"]}
ANSWERS = {
    "/clustercert/v1/clusters": {
        "clusters": [
            {"id": "1", "name": name, "project_id": PROJECT, "project": "eu-de", "domain": "zoo"}
            for name in ("zebra", "zebu", "ze$(reboot)")
        ],
        "next": None,
    },
    "/clustercert/v1/caller": {**OPERATOR, "service_roles": [], "projects": [OWN]},
    "/clustercert/v1/users": {"users": [{"name": "okapi"}], "next": None},
}


class Service(ThreadingHTTPServer):
    """Answers some requests, and none while `silent` is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = dict(ANSWERS)
        self.asked: list[str] = []
        self.silent = threading.Event()
        self.ended = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        if self.server.silent.is_set():
            self.server.ended.wait()
            return
        content = json.dumps(self.server.answers.get(path, {})).encode()
        self.send_response(200 if path in self.server.answers else 403)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the standard library
        pass


@pytest.fixture
def service(home: Path) -> Iterator[Service]:
    """A service, and a login there."""
    del home
    with Service() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        profile.save("default", Profile(url, "okapi", PROJECT, "eu-de", token="t"), os.environ)
        yield server
        server.ended.set()
        server.shutdown()


def completed(line: str) -> list[str]:
    """The names that the program tells a shell."""
    return [each for each in told(line) if not each.endswith(":")]


def told(line: str) -> list[str]:
    """What the program tells a shell. It ends by itself, with an empty standard error."""
    variables = {
        "_CLUSTERCERT_COMPLETE": "complete_fish",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_ARGS": line,
    }
    done = subprocess.run(
        [sys.executable, "-m", "clustercert"],
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def make_old(written: float = 0) -> None:
    """Let the cached names be too old, or from a time at which the clock was ahead, to be used without asking."""
    for file in Path(str(cache.folder("names"))).iterdir():
        # A child process may be replacing one.
        with contextlib.suppress(FileNotFoundError):
            os.utime(file, (written, written))


def test_names_are_completed_if_a_shell_reads_them_as_text(service: Service) -> None:
    line = "clustercert kubeconfig merge ze"
    assert eventually(lambda: completed(line)) == ["zebra", "zebu"]
    asked = len(service.asked)
    assert completed("clustercert kubeconfig get zebr") == ["zebra"]
    assert len(service.asked) == asked
    for name in ("a b", "a;b", "a'b", 'a"b', "$a", "`a`", "a\\", "a\nb", "", "-rf", "a*", "~a", "a\u202eb"):
        assert not is_plain(name), name


def test_an_ambiguous_name_is_completed_to_full_names(service: Service) -> None:
    clusters = [
        {"id": str(number), "name": name, "project_id": PROJECT, "project": "eu-de", "domain": domain}
        for number, (name, domain) in enumerate([("zebra", "zoo"), ("zebra", "farm"), ("zebu", "zoo")])
    ]
    service.answers["/clustercert/v1/clusters"] = {"clusters": clusters, "next": None}
    merge, both = "clustercert kubeconfig merge", ["farm/eu-de/zebra", "zoo/eu-de/zebra"]
    assert eventually(lambda: completed(f"{merge} ")) == [both[0], "zebu", both[1]]
    # The service refuses the name without a domain.
    assert completed(f"{merge} ze") == ["zebu"]
    assert completed(f"{merge} fa") == both[:1]
    assert completed(f"{merge} zoo/") == ["zoo/eu-de/zebra", "zoo/eu-de/zebu"]
    assert completed("clustercert cluster show zo") == both[1:]


def test_names_of_other_domains_are_full_if_they_are_ambiguous(service: Service) -> None:
    service.answers["/clustercert/v1/caller"] = OPERATOR
    users = [
        {"name": name, "domain": domain}
        for name, domain in [("okapi", "zoo"), ("okapi", "farm"), ("ox", "farm")]
    ]
    service.answers["/clustercert/v1/users"] = {"users": users, "next": None}
    assert eventually(lambda: completed("clustercert user show ")) == ["farm/okapi", "ox", "zoo/okapi"]
    assert completed("clustercert user show o") == ["ox"]


def test_names_are_asked_for_again_after_a_clock_that_was_ahead_was_set(service: Service) -> None:
    line = "clustercert kubeconfig merge ze"
    assert eventually(lambda: completed(line)) == ["zebra", "zebu"]
    asked = len(service.asked)
    make_old(time.time() + 25 * 3600)
    completed(line)
    assert eventually(lambda: len(service.asked) > asked)


def test_a_service_that_does_not_answer_delays_nothing(service: Service) -> None:
    line = "clustercert kubeconfig get zebr"
    service.silent.set()
    # The scripts then complete no files instead.
    assert told(line) == ["zebr:"]
    assert eventually(lambda: service.asked)
    # The next key does not ask again.
    assert completed(line) == []
    assert len(service.asked) == 1

    service.silent.clear()
    make_old()
    assert eventually(lambda: completed(line)) == ["zebra"]
    service.silent.set()
    make_old()
    assert completed(line) == ["zebra"]


def test_only_operators_ask_for_what_only_operators_may_list(service: Service) -> None:
    line = "clustercert user show oka"
    assert completed(line) == []
    assert eventually(lambda: "/clustercert/v1/caller" in service.asked)
    assert "/clustercert/v1/users" not in service.asked
    service.answers["/clustercert/v1/caller"] = OPERATOR
    make_old()
    assert eventually(lambda: completed(line)) == ["okapi"]


@pytest.mark.parametrize(
    "line", ["kubeconfig use zoo", "kubeconfig use --kubeconfig other zoo", "kubeconfig unmerge zoo"]
)
def test_contexts_that_merge_wrote_are_completed(
    home: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.chdir(home)
    config = KubeconfigDocument(b"contexts: [{name: zoo-foreign, context: {cluster: c, user: u}}]")
    for name in ("zoo-prod", "zoo-test", "lab"):
        ref = ClusterRef("default", PROJECT, "eu-de", "zoo", "1", name, "zoo/okapi")
        entries.put(config, name, ref, {"server": "https://10.0.0.5:6443"}, {})
    (home / ".kube").mkdir()
    for file in (home / ".kube" / "config", home / "other"):
        file.write_text(config.changed_text())
    assert completed(f"clustercert {line}") == ["zoo-prod", "zoo-test"]


def test_without_a_valid_login_there_are_no_names(service: Service, home: Path) -> None:
    line = "clustercert kubeconfig get zebr"
    assert eventually(lambda: completed(line)) == ["zebra"]
    found = profile.remembered("default", os.environ)
    assert found is not None
    # Names of another login are not shown.
    profile.save("default", replace(found, user="bongo", token=None), os.environ)
    asked = len(service.asked)
    assert completed(line) == []
    (home / "config" / "clustercert" / "profiles" / "default.json").write_text("{")
    assert completed(line) == []
    (home / "config" / "clustercert" / "profiles" / "default.json").unlink()
    assert completed(line) == []
    assert len(service.asked) == asked


def test_logout_deletes_the_names(service: Service, tmp_path: Path) -> None:
    assert eventually(lambda: completed("clustercert kubeconfig get zebr")) == ["zebra"]
    folder = Path(str(cache.folder("names")))
    assert list(folder.iterdir())
    assert Operator(tmp_path).run("logout").code == 0
    assert list(folder.iterdir()) == []
