"""Checks which packages each command of the client imports, since imports are most of its start-up time.

`make check` runs it. A command may import the standard library, `clustercert` and the packages that its rule names.
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from clustercert.cli.clock import boot_time
from clustercert.cli.credential.cache import CachedCredential, login_state, path_of, rendered
from clustercert.cli.login.profile import Profile, save

# typer imports the other two.
PARSER = frozenset({"typer", "annotated_doc", "shellingham"})
ISSUING = PARSER | {"cryptography", "yaml"}
# For settings and policy.
SETTINGS = PARSER | {
    *("pydantic", "pydantic_core", "pydantic_settings", "annotated_types", "dotenv", "typing_extensions"),
    *("typing_inspection", "cryptography", "cachetools"),
}
# For commands that only read the store, and its keys, whose problems are logged. structlog imports rich and two more.
STORE = SETTINGS | {
    *("sqlalchemy", "aiosqlite", "greenlet"),
    *("structlog", "rich", "pygments", "attr", "prometheus_client"),
}
# Slow modules of the standard library that a cached credential does not need.
NETWORK = frozenset({"ssl", "socket", "json", "asyncio"})
SLOW = frozenset({"asyncio"})
PROJECT, CLUSTER = "a" * 32, "6a3c2e2c-0000-4000-8000-000000000001"
IN_ADMINISTRATION = {"domain": "Default", "enabled": True, "description": ""}
# What comes with the interpreter, and what the packages bring along.
IGNORED = frozenset({"clustercert", "__mp_main__", "_cffi_backend", "_openssl", "_yaml", "cython_runtime"})


IN_PROJECT = {"project": "eu-de", "project_id": PROJECT, "domain": "Default", "domain_id": PROJECT}
CERTIFICATE: dict[str, object] = {
    "fingerprint": "2f9c1a7e" * 8,
    "cluster_id": CLUSTER,
    "cluster_name": "prod",
    "project_id": PROJECT,
    "project_name": "eu-de",
    "user_name": "alice",
    "state": "live",
    "groups": [],
    "not_after": "2030-01-01T00:00:00Z",
    "last_seen_at": None,
    "issued_at": "2026-01-01T00:00:00Z",
    "pem": "",
}
REPORT: dict[str, object] = {
    "complete": True,
    "users": [],
    "unknown_credentials": [],
    "controls": [],
    "enforced_by": [],
    "residual_risks": [],
}


EXPLANATION: dict[str, object] = {
    "allowed": True,
    "user": {"name": "alice", "roles": []},
    "cluster": {"name": "prod"},
    "seen_at": None,
    "would_sign": {
        "common_name": "alice",
        "organizations": [],
        "not_before": "2026-01-01T00:00:00Z",
        "not_after": "2026-01-01T08:05:00Z",
        "key_type": "ec-p256",
        "shortened": False,
        "limit": {"until": "2026-01-01T08:05:00Z", "by": "policy", "rule": None},
    },
    "nearest": None,
    "complete": True,
    "rules": [],
}


class Rule(NamedTuple):
    """What a command may import: these packages, and the standard library without `forbidden`.

    Attributes:
        completed: the line that a shell completes, instead of a command.
    """

    command: tuple[str, ...]
    packages: frozenset[str]
    forbidden: frozenset[str] = SLOW
    completed: str = ""


RULES = (
    Rule(("--version",), frozenset(), NETWORK),
    Rule(("credential", CLUSTER, "--profile", "default", "--project", PROJECT), frozenset(), NETWORK),
    Rule(("--help",), PARSER, SLOW | {"ssl"}),
    Rule(("cluster", "add", "--help"), PARSER, SLOW | {"ssl"}),
    Rule(("profile", "list"), PARSER, SLOW | {"ssl"}),
    Rule(("login", "--help"), PARSER, SLOW | {"ssl"}),
    Rule(("clusters",), PARSER),
    Rule(("explain", "prod"), PARSER),
    Rule(("status",), PARSER),
    Rule(("project", "list"), PARSER),
    Rule(("cluster", "list"), PARSER),
    Rule(("cluster", "show", "prod"), PARSER),
    Rule(("cluster", "update", "prod", "--version", "v1.33", "--exempt", "ops"), PARSER),
    Rule(("cluster", "ca", "status"), PARSER),
    Rule(("cluster", "remove", "prod", "--yes"), PARSER),
    Rule(("access-key", "list", "--user", "alice"), PARSER),
    Rule(("kubernetes", "token", "list", "prod"), PARSER),
    Rule(("certificate", "list"), PARSER),
    Rule(("audit", "tail", "--project", PROJECT), PARSER),
    Rule(("certificate", "list", "--all", "--cluster", "prod", "--expires-before", "7d"), PARSER),
    Rule(("certificate", "show", "2f9c1a7e"), PARSER),
    Rule(("certificate", "revoke", "2f9c1a7e", "--yes"), PARSER),
    Rule(("certificate", "access", "--cluster", "prod"), PARSER),
    Rule(("user", "list"), PARSER),
    Rule(("group", "list"), PARSER),
    Rule(("role", "list"), PARSER),
    Rule(("kubeconfig", "get", "prod"), ISSUING),
    Rule(("kubeconfig", "list"), ISSUING),
    Rule(("kubeconfig", "merge", "prod"), ISSUING),
    Rule(("kubeconfig", "unmerge", "--all"), ISSUING),
    Rule((), PARSER | {"yaml"}, completed="clustercert kubeconfig get pr"),
    Rule(("logout",), PARSER),
    Rule(("policy", "test"), SETTINGS, frozenset()),
    Rule(("policy", "can", "--group", "admins", "--cluster", "prod"), PARSER),
    Rule(("db", "check"), STORE, frozenset()),
)
PROBE = """
import sys
before = set(sys.modules)
target = sys.argv.pop(1)
from clustercert.__main__ import main
try:
    main()
except SystemExit:
    pass
with open(target, "w") as file:
    file.write("\\n".join(set(sys.modules) - before))
"""


class Service(BaseHTTPRequestHandler):
    """Answers the requests of the commands. It refuses to issue certificates."""

    def do_GET(self) -> None:
        """Return one project with one cluster, with the fields of all APIs."""
        self._answer(
            200,
            {
                "projects": [{"id": PROJECT, "name": "eu-de", **IN_ADMINISTRATION}],
                **{name: [] for name in ("users", "groups", "assignments", "events", "rotations")},
                "names": {},
                "next": None,
                "items": [{"metadata": {"uid": CLUSTER, "name": "prod"}}],
                "clusters": [{"id": CLUSTER, "name": "prod", **IN_PROJECT}],
                "certificates": [CERTIFICATE],
                "service_roles": [],
                **CERTIFICATE,
                **REPORT,
                **EXPLANATION,
            },
        )

    def do_POST(self) -> None:
        """Refuse a certificate."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(403, {"error_msg": "No.", "error_code": "CCE.01403001"})

    def do_DELETE(self) -> None:
        """Accept the end of a login."""
        self._answer(200, {})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the standard library
        """Write no log."""

    def _answer(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def prepare(home: Path, url: str) -> dict[str, str]:
    """Write a login, a cached credential and a store. Returns the environment that uses them."""
    ours = ("CLUSTERCERT", "OS_", "COVERAGE")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    variables |= {"XDG_CONFIG_HOME": str(home / "config"), "XDG_CACHE_HOME": str(home / "cache")}
    login = Profile(url, "alice", PROJECT, "eu-de", token="none")
    file = save("default", login, variables)
    os.environ["XDG_CACHE_HOME"] = variables["XDG_CACHE_HOME"]
    cached = Path(str(path_of("default", PROJECT, CLUSTER)))
    cached.parent.mkdir(parents=True, mode=0o700)
    now = int(time.time())
    entry = CachedCredential(
        issued=now,
        renew=now + 3600,
        expires=now + 7200,
        not_after=now + 7200,
        boot_time=boot_time(),
        user="alice",
        login=login_state(str(file)),
        body="{}\n",
    )
    cached.write_text(rendered(entry))
    cached.chmod(0o600)
    variables["CLUSTERCERT_DATA_DIR"] = str(home / "data")
    variables["CLUSTERCERT_KEK"] = base64.b64encode(os.urandom(32)).decode()
    subprocess.run(
        [sys.executable, "-m", "clustercert", "db", "upgrade"], env=variables, capture_output=True, check=True
    )
    return variables


def imported(command: Sequence[str], folder: Path, variables: dict[str, str]) -> set[str]:
    """Return the modules that a command imported."""
    target = folder / "modules"
    target.unlink(missing_ok=True)
    run = [sys.executable, "-c", PROBE, str(target), *command]
    done = subprocess.run(run, env=variables, capture_output=True, text=True, check=False)
    if not target.exists() or "Traceback" in done.stderr:
        sys.exit(f"check_imports: {' '.join(command)} failed:\n{done.stderr}")
    return set(target.read_text().splitlines())


def violations(rule: Rule, modules: set[str]) -> set[str]:
    """Return the modules and packages that the command must not import."""
    top = {module.partition(".")[0] for module in modules}
    packages = {
        name
        for name in top - sys.stdlib_module_names - rule.packages
        if not name.startswith(("_cython_", "_sysconfigdata_"))
    }
    packages -= IGNORED
    return packages | (modules & rule.forbidden)


def main() -> None:
    """Run all commands, and print what breaks a rule."""
    broken = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(prefix="clustercert-imports-") as name:
        variables = prepare(Path(name), f"http://127.0.0.1:{server.server_port}")
        for rule in RULES:
            line = {"_TYPER_COMPLETE_ARGS": rule.completed, "_CLUSTERCERT_COMPLETE": "complete_fish"}
            found = violations(
                rule, imported(rule.command, Path(name), variables | (line if rule.completed else {}))
            )
            command = rule.completed or f"clustercert {' '.join(rule.command)}"
            broken += [f"`{command}` imports {module}" for module in sorted(found)]
    server.shutdown()
    if broken:
        sys.exit("\n".join(broken))
    print(f"{len(RULES)} commands import only what they may")


if __name__ == "__main__":
    main()
