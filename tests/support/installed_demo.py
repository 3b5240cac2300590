"""The installed command: `clustercert demo` as a child process, and operator commands on its store."""

import json
import os
import re
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from support.store_commands import on_store
from support.wait import SECONDS, line_with

MISSING_CLUSTER = "00000000-0000-4000-8000-000000000000"
"""The id of no cluster."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A project with a user and a cluster, as the demo reports it.

    Attributes:
        tls_ca: of the service's certificate; None for a demo without TLS.
    """

    url: str
    region: str
    project_id: str
    domain_id: str
    cluster_id: str
    user_id: str
    user_name: str
    password: str
    token: str
    access_key: str
    secret_key: str
    client_ca: Path
    tls_ca: Path | None

    @classmethod
    def of(cls, report: Mapping[str, object]) -> "Tenant":
        texts = {name: str(report[name]) for name in cls.__slots__ if name not in ("client_ca", "tls_ca")}
        tls_ca = Path(str(report["tls_ca"])) if "tls_ca" in report else None
        return cls(**texts, client_ca=Path(str(report["client_ca"])), tls_ca=tls_ca)

    @property
    def verify(self) -> ssl.SSLContext:
        """The TLS context for HTTP clients."""
        return ssl.create_default_context(cafile=self.tls_ca)

    @property
    def clusters_path(self) -> str:
        return f"/api/v3/projects/{self.project_id}/clusters"

    @property
    def clustercert_path(self) -> str:
        return f"{self.clusters_path}/{self.cluster_id}/clustercert"


@dataclass(frozen=True, slots=True)
class Demo:
    """A running demo; `own` is the first tenant, `others` are the further ones."""

    own: Tenant
    others: tuple[Tenant, ...]
    kubeconfig: Path
    data_dir: Path
    process: subprocess.Popen[str]
    log: Path


def program() -> str:
    """The command under test, from the project's environment, not from that of the clients."""
    beside_the_tests = Path(__file__).resolve().parents[2] / ".venv" / "bin" / "clustercert"
    return os.environ.get("CLUSTERCERT_BIN") or str(beside_the_tests)


def start(folder: Path, *options: str) -> Demo:
    """Start a demo on a free port, and wait until it is ready."""
    data_dir, log = folder / "data", folder / "demo.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [program(), "demo", "--json", "--port", "0", "--data-dir", data_dir, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=folder,
        )
    report = _report(process, log)
    tenants = report.get("tenants") or []
    assert isinstance(tenants, list)
    return Demo(
        own=Tenant.of(report),
        others=tuple(Tenant.of(tenant) for tenant in tenants),
        kubeconfig=Path(str(report["kubeconfig"])),
        data_dir=data_dir,
        process=process,
        log=log,
    )


def restarted(demo: Demo) -> Demo:
    """Start a stopped demo again, with the same data and address."""
    tls = ["--tls"] if demo.own.tls_ca is not None else []
    return start(demo.data_dir.parent, *tls, "--port", str(urlsplit(demo.own.url).port))


def stop(demo: Demo) -> None:
    """Interrupt it like Ctrl-C. Asserts a clean exit and a log without errors."""
    demo.process.send_signal(signal.SIGINT)
    try:
        status = demo.process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        demo.process.kill()
        raise
    if demo.process.stdout is not None:
        demo.process.stdout.close()
    log = demo.log.read_text()
    assert status == 0, log
    assert "Traceback" not in log, log
    served = [json.loads(line) for line in (demo.data_dir / "server.log").read_text().splitlines()]
    assert [line for line in served if line["level"] in {"error", "critical"}] == []


def operator(demo: Demo, *arguments: str | Path) -> str:
    """Run one of the operator's commands on the demo's store; returns its standard output."""
    done = subprocess.run(
        [program(), *on_store(map(str, arguments))],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env=operators_environment(demo),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def operators_environment(demo: Demo) -> dict[str, str]:
    """Our environment, with the settings of the demo's store."""
    return {
        **os.environ,
        "CLUSTERCERT_DATA_DIR": str(demo.data_dir),
        # A demo's key-encryption key lies beside what it protects, where no other setting looks for one.
        "CLUSTERCERT_KEK_FILE": str(demo.data_dir / "kek"),
    }


@contextmanager
def replica_with_tls(demo: Demo, data_dir: Path) -> Iterator[str]:
    """The address of a second service on the demo's database, with a separate data folder.

    It creates a TLS key and certificate there; the CA is `tls-ca.pem`.
    """
    data_dir.mkdir(mode=0o700)
    database = demo.data_dir / "clustercert.db"
    process = subprocess.Popen(
        [program(), "serve", "--host", "0.0.0.0", "--port", "0"],
        env={
            **operators_environment(demo),
            "CLUSTERCERT_DATA_DIR": str(data_dir),
            "CLUSTERCERT_DATABASE_URL": f"sqlite+aiosqlite:///{database}",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = line_with(process.stderr, "Listening on")
    listening = re.search(r"Listening on https://0\.0\.0\.0:(\d+)", said)
    # Else it might wait for somebody to read its log.
    rest = threading.Thread(target=process.stderr.read, daemon=True)
    rest.start()
    try:
        assert listening, said
        yield f"https://127.0.0.1:{listening[1]}"
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(SECONDS)
        rest.join(SECONDS)
        process.stderr.close()
    assert status == 0


def _report(process: subprocess.Popen[str], log: Path) -> Mapping[str, object]:
    """The JSON object on standard output, on one line or more."""
    assert process.stdout is not None
    overdue = threading.Timer(SECONDS, process.kill)
    overdue.start()
    text = ""
    began = time.monotonic()
    try:
        for line in process.stdout:
            text += line
            try:
                report = json.loads(text)
            except ValueError:
                continue
            assert isinstance(report, dict), text
            return report
    finally:
        overdue.cancel()
    process.wait(SECONDS)
    raise AssertionError(f"no demo after {time.monotonic() - began:.0f} s: {text}{log.read_text()}")
