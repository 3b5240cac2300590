"""Runs django-ca as a peer: its REST API under gunicorn, with PostgreSQL."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bench import processes
from bench.peers import Peer
from bench.postgres import Postgres
from bench.traffic import JSON, csr_pem, http

SITE = Path(__file__).parent / "djangoca_site"
# `make bench` creates this environment from the lock file next to the site, because its dependencies differ.
ENVIRONMENT = Path(__file__).parents[2] / ".venvs" / "django-ca"
WHOLE_ORDER = Path(__file__).with_suffix(".lua")


def version() -> str:
    """Return the version of the installed django-ca."""
    return subprocess.run(
        [ENVIRONMENT / "bin" / "python", "-c", "import django_ca; print(django_ca.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


@contextlib.contextmanager
def running(
    folder: Path, postgres: Postgres, workers: int = 2, *, cheap_passwords: bool = True
) -> Iterator[Peer]:
    """Serve its sign call during the block. It takes a CSR, and returns an order.

    Without `cheap_passwords`, each request checks Django's default, slow password hash.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    database = f"django_ca_{'cheap' if cheap_passwords else 'shipped'}"
    postgres.create(database)
    env = {
        "DJANGO_SETTINGS_MODULE": "settings",
        "PYTHONPATH": str(SITE),
        "BENCH_POSTGRES_PORT": str(postgres.port),
        "BENCH_POSTGRES_DATABASE": database,
        "BENCH_FOLDER": str(folder),
        **({"BENCH_CHEAP_PASSWORDS": "1"} if cheap_passwords else {}),
    }
    python = str(ENVIRONMENT / "bin" / "python")
    serial = subprocess.run(
        [python, str(SITE / "prepare.py")],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.split()[-1]
    port = processes.free_port()
    command = [python, "-m", "gunicorn", "-b", f"127.0.0.1:{port}", "-w", str(workers), "-k", "sync"]
    command += ["django.core.wsgi:get_wsgi_application()"]
    log = folder / "gunicorn.log"
    with processes.running(command, log, lambda: processes.listens(port), env=env) as pid:
        yield Peer(
            url=f"http://127.0.0.1:{port}",
            requests=list(_requests(f"127.0.0.1:{port}", serial)),
            roots=[pid, postgres.pid],
        )


def whole_order(ordering: Peer) -> Peer:
    """Return the same server with a conversation that polls each order until the certificate is returned."""
    return replace(ordering, conversation=WHOLE_ORDER)


def _requests(host: str, serial: str) -> Iterator[bytes]:
    credential = base64.b64encode(b"bench:bench").decode()
    subject = [{"oid": "2.5.4.3", "value": "7116d09f88fa41908676fdd4b039e95b"}]
    for _ in range(64):
        body = json.dumps({"csr": csr_pem(), "subject": subject, "profile": "client"}).encode()
        headers = JSON | {"Authorization": f"Basic {credential}"}
        yield http("POST", f"/django_ca/api/ca/{serial}/sign/", host, headers, body)
