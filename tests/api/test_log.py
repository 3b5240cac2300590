import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clustercert.http import middleware
from support import programs
from support.log_capture import captured_logs
from support.service import Service
from support.wait import SECONDS

# The number of requests that the script sends.
REQUESTS = 24


@dataclass
class Logged:
    """What a process logged, the secrets that it used, and the names of people by their ids."""

    out: str
    err: str
    secrets: list[str]
    people: dict[str, str]

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def requests(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == "request"]


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Logged:
    folder = tmp_path_factory.mktemp("logged")
    done = programs.run("logged_service", "client-requests", folder)
    assert done.returncode == 0, done.stderr
    secrets, people = (json.loads((folder / f"{name}.json").read_text()) for name in ("secrets", "people"))
    return Logged(done.stdout, done.stderr, secrets, people)


def test_no_secret_is_in_the_log(logged: Logged) -> None:
    assert len(logged.secrets) > 10
    said = logged.out + logged.err
    assert [secret for secret in logged.secrets if secret in said] == []


def test_nothing_in_pem_is_in_the_log(logged: Logged) -> None:
    for mark in ("-----BEGIN", "LS0tLS1CRUdJTi", "PRIVATE KEY"):
        assert mark not in logged.out + logged.err


def test_each_request_is_one_line_of_json(logged: Logged) -> None:
    assert len(logged.requests) == REQUESTS
    for line in logged.requests:
        assert line.keys() >= {"method", "path", "status", "ms", "source", "request_id", "timestamp", "level"}
        assert line["source"] == "127.0.0.1"
    assert len({line["request_id"] for line in logged.requests}) == REQUESTS


def test_a_refusals_line_says_the_first_false_condition_of_each_rule(logged: Logged) -> None:
    [refused] = [line for line in logged.requests if line["status"] == 403]
    assert refused["error"] == "Forbidden"
    assert refused["trace"]["roles"] == ["inspector"]
    assert refused["trace"]["unmet_conditions"]["member"] == "role is member"


def test_a_query_is_not_logged(logged: Logged) -> None:
    assert not any("?" in line["path"] for line in logged.requests)


def test_a_path_cannot_forge_a_line_or_a_colour(logged: Logged) -> None:
    (line,) = [line for line in logged.requests if line["status"] == 404]
    assert line["path"] == '/nope\n"forged": \x1b[31m'
    assert "\x1b" not in logged.out


def test_what_was_issued_is_named_by_its_fingerprint(logged: Logged) -> None:
    issued = [line for line in logged.requests if line["path"].endswith("cert") and line["status"] == 200]
    assert len(issued) == 3
    for line in issued:
        assert len(line["target_fingerprint"]) == 64
        assert line["target_username"] == line["caller_id"]
        assert line["target_cluster_id"]
        assert line["level"] == "info"


def test_each_line_of_an_authenticated_request_names_the_caller(logged: Logged) -> None:
    authenticated = [line for line in logged.requests if line["status"] in (200, 201, 303, 403, 500, 503)]
    assert len(authenticated) == 9
    names = [(line["caller_id"], line["caller"]) for line in authenticated]
    assert set(names) <= logged.people.items()
    assert {name.partition("/")[2] for _, name in names} == {"admin", "inspector", "operator"}
    requests = {line["request_id"]: line["caller_id"] for line in authenticated}
    others = [line for line in logged.lines if line["event"] == "unexpected error"]
    assert [line["caller_id"] for line in others] == [requests[line["request_id"]] for line in others]
    [refused] = [line for line in logged.requests if line["status"] == 403]
    assert refused["caller"].endswith("/inspector")


def test_a_line_without_authentication_names_no_caller(logged: Logged) -> None:
    refused = [line for line in logged.requests if line["status"] in (401, 404)]
    assert refused
    assert [line for line in refused if "caller_id" in line or "caller" in line] == []
    assert [line for line in logged.lines if "request_id" not in line and "caller_id" in line] == []


def test_the_targets_of_a_revocation_differ_from_its_caller(logged: Logged) -> None:
    [line] = [line for line in logged.requests if "revocation" in line]
    assert logged.people[line["caller_id"]].endswith("/admin")
    assert logged.people[line["target_user_id"]].endswith("/member")
    assert line["target_cluster_id"]
    assert line["target_fingerprint"] is None
    assert [each for each in logged.requests if "user" in each] == []


def test_a_refusal_says_in_the_log_why_and_at_which_level(logged: Logged) -> None:
    refused = [line for line in logged.requests if line["status"] == 401]
    assert len(refused) == 7
    for line in refused:
        assert line["error"] == "Unauthenticated"
        assert line["reason"] != "Authorization failed."
        assert line["level"] == "info"


def test_a_failed_login_names_the_account_or_the_hash_of_an_unknown_name(logged: Logged) -> None:
    """A client may have sent a password as the name: `test_no_secret_is_in_the_log`."""
    failed = [line for line in logged.requests if line["status"] == 401 and line["method"] == "POST"]
    [known] = [line["account_id"] for line in failed if "account_id" in line]
    assert logged.people[known].endswith("/admin")
    unknown = [line["unknown_account"] for line in failed if "unknown_account" in line]
    assert len(unknown) == len(failed) - 1 == 3
    assert re.fullmatch(r"[0-9a-f]{16}", unknown[0])
    assert unknown[0] == unknown[1] == unknown[2]


def test_a_failure_inside_is_an_error_in_the_log(logged: Logged) -> None:
    failed = [line for line in logged.requests if line["status"] >= 500]
    assert len(failed) == 1
    assert failed[0]["level"] == "error"
    assert "audit_event" in logged.out


def test_what_cannot_be_logged_is_lost_and_hurts_nobody() -> None:
    """If the disk is full, code that logs continues, such as periodic jobs."""
    script = (
        "import pathlib, structlog\n"
        "from clustercert.observability import log\n"
        "log.configure('json', file=pathlib.Path('/dev/full'))\n"
        "for _ in range(3):\n"
        "    structlog.get_logger().warning('w' * 9000)\n"
        "    structlog.get_logger().info('i')\n"
        "print('went on')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr


def test_a_reader_who_went_away_hurts_nobody() -> None:
    script = (
        "import sys, structlog\n"
        "from clustercert.observability import log\n"
        "log.configure('json')\n"
        "sys.stdin.readline()\n"
        "for _ in range(3):\n"
        "    structlog.get_logger().warning('w' * 9000)\n"
        "    structlog.get_logger().info('i')\n"
        "sys.stderr.write('went on')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, said = process.communicate("\n", timeout=SECONDS)
    assert (process.returncode, said) == (0, "went on")


def test_nobody_steers_the_terminal_of_who_reads(tmp_path: Path) -> None:
    file = tmp_path / "log"
    script = (
        "import pathlib, sys, structlog\n"
        "from clustercert.observability import log\n"
        "log.configure('console', file=pathlib.Path(sys.argv[1]))\n"
        "structlog.get_logger().info('request', path='/\\x1b[2J\\x1b]0;x\\x07', other='\\u00fc')\n"
    )
    subprocess.run([sys.executable, "-c", script, str(file)], timeout=SECONDS, check=True)
    said = file.read_text(encoding="utf-8")
    assert said.rstrip("\n").isprintable()
    assert "[2J" in said
    assert "\u00fc" in said


def test_probes_that_succeed_are_not_in_the_log(service_with: Callable[..., Service]) -> None:
    """Kubernetes sends thousands a day to each container."""
    service = service_with()
    with captured_logs(middleware) as lines:
        paths = ("/healthz", "/readyz", "/metrics", "/nope")
        statuses = [service.client.get(path).status_code for path in paths]
    assert statuses == [200, 200, 200, 404]
    assert [line["path"] for line in lines if line["event"] == "request"] == ["/nope"]
