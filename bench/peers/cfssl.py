"""Runs Cloudflare's cfssl as a peer: `newcert`, without a database or with a durable SQLite database."""

import contextlib
import json
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench import processes, tls
from bench.peers import Peer
from bench.traffic import JSON, http

# 2 is WARNING. By default, cfssl writes five log lines for each certificate, which would slow it down.
LOG_LEVEL = "2"

# The columns that cfssl reads and writes.
_CERTDB = """
CREATE TABLE certificates (
  serial_number TEXT NOT NULL, authority_key_identifier TEXT NOT NULL, ca_label TEXT, status TEXT NOT NULL,
  reason INTEGER, expiry TIMESTAMP, revoked_at TIMESTAMP, pem TEXT NOT NULL, issued_at TIMESTAMP,
  not_before TIMESTAMP, metadata TEXT, sans TEXT, common_name TEXT,
  PRIMARY KEY (serial_number, authority_key_identifier)
);
CREATE TABLE ocsp_responses (
  serial_number TEXT NOT NULL, authority_key_identifier TEXT NOT NULL, body TEXT NOT NULL, expiry TIMESTAMP,
  PRIMARY KEY (serial_number, authority_key_identifier)
);
"""
_SUBJECT = {"CN": "7116d09f88fa41908676fdd4b039e95b", "names": [{"O": "clustercert:admins"}]}
_PROFILE = {"usages": ["digital signature", "client auth"], "expiry": "24h"}


def version() -> str:
    """Return the version of the installed cfssl. Debian's reports only `dev`, so use the package's version."""
    asked = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", "golang-cfssl"], capture_output=True, text=True, check=False
    )
    return asked.stdout or "unknown"


@contextlib.contextmanager
def running(
    folder: Path, *, durable: bool, rsa: bool = False, files: tls.Files | None = None
) -> Iterator[Peer]:
    """Serve newcert during the block. It returns a key and a certificate, as POST clustercert does without a CSR.

    `durable` adds a row for each certificate to an SQLite database with WAL and synchronous=FULL, like that of this
    service. With `files`, it serves TLS.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _make_ca(folder)
    port = processes.free_port()
    command = ["cfssl", "serve", "-address", "127.0.0.1", "-port", str(port), "-loglevel", LOG_LEVEL]
    command += ["-ca", "ca.pem", "-ca-key", "ca-key.pem", "-config", "config.json"]
    (folder / "config.json").write_text(json.dumps({"signing": {"default": _PROFILE}}))
    if durable:
        _make_database(folder)
        command += ["-db-config", "db.json"]
    if files:
        command += ["-tls-cert", str(files.certificate), "-tls-key", str(files.key)]
    key = {"algo": "rsa", "size": 2048} if rsa else {"algo": "ecdsa", "size": 256}
    body = json.dumps({"request": {**_SUBJECT, "key": key}}).encode()
    request = http("POST", "/api/v1/cfssl/newcert", f"127.0.0.1:{port}", JSON, body)
    log = folder / "cfssl.log"
    with processes.running(command, log, lambda: processes.listens(port), cwd=folder) as pid:
        scheme = "https" if files else "http"
        yield Peer(url=f"{scheme}://127.0.0.1:{port}", requests=[request], roots=[pid])


def _make_ca(folder: Path) -> None:
    wish = {"CN": "bench", "key": {"algo": "ecdsa", "size": 256}, "ca": {"expiry": "87600h"}}
    made = subprocess.run(
        ["cfssl", "genkey", "-loglevel", LOG_LEVEL, "-initca", "-"],
        input=json.dumps(wish).encode(),
        capture_output=True,
        check=True,
    )
    answer = json.loads(made.stdout)
    (folder / "ca.pem").write_text(answer["cert"])
    (folder / "ca-key.pem").write_text(answer["key"])


def _make_database(folder: Path) -> None:
    file = folder / "certificates.db"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(_CERTDB)
    # Options of its driver, go-sqlite3: writers wait for others instead of failing.
    source = f"file:{file}?_journal_mode=WAL&_synchronous=FULL&_busy_timeout=10000"
    (folder / "db.json").write_text(json.dumps({"driver": "sqlite3", "data_source": source}))
