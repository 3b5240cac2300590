"""Text that a service chooses must not control the terminal or the shell of a user."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clustercert.cli.credential import entry
from clustercert.cli.kubeconfig.entries import context_name
from clustercert.cli.login import profile
from clustercert.cli.login.profile import Profile
from clustercert.cli.options import CommandError
from clustercert.model.kubeconfigs import ClusterRef

CLUSTER, PROJECT = "11111111-1111-1111-1111-111111111111", "1" * 32
ESCAPES = "\x1b]0;pwned\x07\x1b[2J\x9b31m\u202ehello"
ARGUMENTS = [CLUSTER, "--profile", "default", "--project", PROJECT]


@contextmanager
def refusing(status: int, message: str) -> Iterator[str]:
    """A service that answers every request with this error. Yields its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            content = json.dumps({"errorCode": "X", "errorMessage": message}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable, folder in (("XDG_CONFIG_HOME", "config"), ("XDG_CACHE_HOME", "cache")):
        monkeypatch.setenv(variable, str(tmp_path / folder))
    monkeypatch.delenv("KUBERNETES_EXEC_INFO", raising=False)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def save(home: Path, url: str, *, user: str = "alice", project: str = "eu-de") -> None:
    expiry = datetime.now(UTC) + timedelta(hours=1)
    login = Profile(url, user, PROJECT, project, token="t0ken", expires_at=expiry)
    profile.save("default", login, {"XDG_CONFIG_HOME": str(home / "config")})


def test_a_services_message_cannot_steer_the_terminal_of_kubectl(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with refusing(403, ESCAPES) as url:
        save(home, url)
        assert entry.run(ARGUMENTS) == 4
    said = capsys.readouterr().err
    assert r"\x1b]0;pwned\x07\x1b[2J\x9b31m\u202ehello" in said
    assert said.removesuffix("\n").isprintable()


def test_the_command_for_the_next_login_has_no_text_of_the_service(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with refusing(401, "no") as url:
        save(home, url, user="a;b$(id)", project="x y`id`")
        assert entry.run(ARGUMENTS) == 3
    command = capsys.readouterr().err.partition("Run `")[2]
    assert command == "clustercert login`.\n"


@pytest.mark.parametrize("name", ["a\x9b31m", "a\u202eb", "a\u200bb", "a\x1b[2J", "a b", "a\x00", "\ud800"])
def test_a_context_has_no_control_or_bidirectional_characters(name: str) -> None:
    with pytest.raises(CommandError, match="not a name for a context"):
        context_name(
            "{cluster}", ClusterRef("p", PROJECT, "eu-de", "Default", CLUSTER, name, "Default/u"), "alice"
        )


def test_a_context_can_have_letters_of_any_script() -> None:
    assert (
        context_name(
            "{cluster}", ClusterRef("p", PROJECT, "eu-de", "Default", CLUSTER, "größe-東", "Default/u"), "u"
        )
        == "größe-東"
    )
