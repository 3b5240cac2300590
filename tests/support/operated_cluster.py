"""An operator with a running service and a double of kube-apiserver, for `kubernetes setup` and `verify`."""

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from clustercert.pki.certificates import chain_pem
from clustercert.pki.keys import key_pem, new_key
from clustercert.server.tls_files import new_server_certificate
from support.apiserver import ApiServer
from support.command_line import CommandResult, Operator
from support.demo_process import COMMAND
from support.stores import rows
from support.wait import SECONDS, line_with

SERVICE_CA = "service-ca.pem"


class OperatedCluster:
    """An operator, a running service, and a registered cluster that trusts its client CA.

    Attributes:
        ca: of the service's certificate.
    """

    def __init__(self, operator: Operator, cluster: ApiServer, url: str) -> None:
        self.operator = operator
        self.cluster = cluster
        self.url = url
        self.ca = operator.folder / SERVICE_CA
        self.folder = cluster.folder / "control-plane"

    @property
    def database(self) -> Path:
        return self.operator.folder / "data" / "clustercert.db"

    def update(self, *options: str) -> None:
        self.operator.output("cluster", "update", "prod", *options)

    def set_up(self, *options: str) -> None:
        """Write the control plane's files, and make the API server read them. It waits long for the webhook."""
        self.write_files("--timeout", "30s", *options)
        self.bind_groups()
        self.cluster.authorize_with(self.folder / "authorization-config.yaml")

    def set_up_command(self, *options: str) -> CommandResult:
        """The result of `kubernetes setup`, which writes the control plane's files."""
        return self.operator.run(
            "kubernetes", "setup", "prod", "--out", self.folder, "--control-plane-dir", self.folder, "--force",
            "--webhook-url", self.url, "--webhook-ca", self.ca, "--unauthorized-ttl", "500ms", *options,
        )  # fmt: skip

    def write_files(self, *options: str) -> None:
        done = self.set_up_command(*options)
        assert done.code == 0, done.err

    def bind_groups(self) -> None:
        """Apply rbac.yaml."""
        for document in yaml.safe_load_all((self.folder / "rbac.yaml").read_text()):
            self.cluster.bind(document["subjects"][0]["name"], document["roleRef"]["name"])

    def verify(self, *options: str) -> tuple[int, dict[str, Any]]:
        done = self.operator.run("kubernetes", "verify", "prod", "--output", "json", *options)
        return done.code, {check["check"]: check for check in json.loads(done.out)}

    def certificates(self) -> Sequence[tuple[object, ...]]:
        """The throw-away certificates of `verify`, in order of issuance."""
        return rows(
            self.database,
            "SELECT user_id, revoked_at FROM certificate WHERE user_id = 'clustercert:verify' ORDER BY id",
        )


@contextlib.contextmanager
def tls_service(operator: Operator, *options: str) -> Iterator[str]:
    """The address of a running TLS service. Its CA is in the operator's folder, and the same for all services."""
    process = subprocess.Popen(
        [*COMMAND, "--config", operator.config, "serve", "--port", "0", *options],
        env={**os.environ, **tls_settings(operator.folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    try:
        listening = re.search(r"https://127\.0\.0\.1:\d+", line_with(process.stderr, "Listening on"))
        assert listening is not None
        yield listening[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=SECONDS)


def tls_settings(folder: Path) -> Mapping[str, str]:
    """Settings for a TLS key and certificate for loopback, as environment."""
    certificate_file, key_file = folder / "service.pem", folder / "service.key"
    if not certificate_file.exists():
        key = new_key("ec-p256")
        now = datetime.now(UTC).replace(microsecond=0)
        leaf, ca = new_server_certificate(key, ["127.0.0.1"], now, timedelta(days=1))
        certificate_file.write_bytes(chain_pem((leaf,)))
        key_file.write_bytes(key_pem(key))
        (folder / SERVICE_CA).write_bytes(chain_pem((ca,)))
    return {
        "CLUSTERCERT_SERVER__TLS_CERTIFICATE": str(certificate_file),
        "CLUSTERCERT_SERVER__TLS_KEY": str(key_file),
    }
