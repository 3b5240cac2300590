"""Runs OpenBao as a peer: its PKI engine signs CSRs for a client's token, with its durable storage (Raft)."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

from bench import processes, tls
from bench.peers import Peer
from bench.traffic import JSON, csr_pem, http

CSRS = 64
ROLE = "bench"
_POLICY = f'path "pki/sign/{ROLE}" {{ capabilities = ["update"] }}'


def installed() -> bool:
    """Whether the program is there."""
    return _program() is not None


def version() -> str:
    """Return the version of the program."""
    said = subprocess.run([str(_program()), "version"], capture_output=True, text=True, check=True).stdout
    return said.split()[1].removeprefix("v")


def _program() -> str | None:
    """Find the program in this environment or in PATH."""
    return shutil.which("bao", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Peer]:
    """Serve its sign call during the block, over TLS."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "raft").mkdir(parents=True)
    files = tls.new_files(folder)
    port, cluster_port = processes.free_port(), processes.free_port()
    configuration = {
        "storage": {"raft": {"path": str(folder / "raft"), "node_id": "bench"}},
        "listener": {
            "tcp": {
                "address": f"127.0.0.1:{port}",
                "cluster_address": f"127.0.0.1:{cluster_port}",
                "tls_cert_file": str(files.certificate),
                "tls_key_file": str(files.key),
            }
        },
        "api_addr": f"https://127.0.0.1:{port}",
        "cluster_addr": f"https://127.0.0.1:{cluster_port}",
    }
    (folder / "bao.json").write_text(json.dumps(configuration))
    command = [str(_program()), "server", "-config", str(folder / "bao.json")]
    with (
        processes.running(command, folder / "bao.log", lambda: processes.listens(port)) as pid,
        httpx2.Client(
            base_url=f"https://127.0.0.1:{port}/v1/", timeout=60, trust_env=False, verify=files.context()
        ) as client,
    ):
        token = _prepared(client)
        yield Peer(f"https://127.0.0.1:{port}", list(_requests(f"127.0.0.1:{port}", token)), [pid])


def _prepared(client: httpx2.Client) -> str:
    """Create a CA and a role for it. Returns a token that may only sign."""
    new = _call(client, "sys/init", {"secret_shares": 1, "secret_threshold": 1})
    _call(client, "sys/unseal", {"key": new["keys"][0]})
    client.headers["X-Vault-Token"] = new["root_token"]
    while client.get("sys/health").status_code != httpx2.codes.OK:
        time.sleep(0.1)
    _call(client, "sys/mounts/pki", {"type": "pki", "config": {"max_lease_ttl": "87600h"}})
    root = {"common_name": "bench", "key_type": "ec", "key_bits": 256, "ttl": "87600h"}
    _call(client, "pki/root/generate/internal", root)
    role = {"key_type": "ec", "key_bits": 256, "allow_any_name": True, "enforce_hostnames": False}
    _call(client, f"pki/roles/{ROLE}", role | {"server_flag": False, "client_flag": True, "ttl": "24h"})
    _call(client, "sys/policies/acl/sign", {"policy": _POLICY})
    token = _call(client, "auth/token/create", {"policies": ["sign"], "no_default_policy": True})
    return str(token["auth"]["client_token"])


def _call(client: httpx2.Client, path: str, body: object) -> dict[str, Any]:
    answer = client.post(path, json=body).raise_for_status()
    return dict(answer.json()) if answer.content else {}


def _requests(host: str, token: str) -> Iterator[bytes]:
    for _ in range(CSRS):
        body = json.dumps({"csr": csr_pem()}).encode()
        yield http("POST", f"/v1/pki/sign/{ROLE}", host, JSON | {"X-Vault-Token": token}, body)
