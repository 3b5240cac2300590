"""An operator with a running service and a cluster, the double of kube-apiserver, to set up and to prove."""

import contextlib
import json
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from apiserver import ApiServer
from operating import Operator
from running import COMMAND
from stores import rows


class Site:
    """An operator, a running service, and a cluster that is registered there and trusts its client CA."""

    def __init__(self, operator: Operator, cluster: ApiServer, url: str) -> None:
        self.operator = operator
        self.cluster = cluster
        self.url = url
        self.folder = cluster.folder / "control-plane"

    @property
    def database(self) -> Path:
        return self.operator.folder / "data" / "clustercert.db"

    def update(self, *options: str) -> None:
        self.operator.gets("cluster", "update", "prod", *options)

    def set_up(self, *options: str) -> None:
        """Write the files, and put them where the API server finds them."""
        self.operator.gets(
            *(
                "kubernetes",
                "setup",
                "prod",
                "--out",
                self.folder,
                "--control-plane-dir",
                self.folder,
                "--force",
            ),
            *("--webhook-url", self.url, "--unauthorized-ttl", "500ms", *options),
        )
        for document in yaml.safe_load_all((self.folder / "rbac.yaml").read_text()):
            self.cluster.bind(document["subjects"][0]["name"], document["roleRef"]["name"])
        self.cluster.authorize_with(self.folder / "authorization-config.yaml")

    def verify(self, *options: str) -> tuple[int, dict[str, Any]]:
        done = self.operator.types("kubernetes", "verify", "prod", "--output", "json", *options)
        return done.code, {check["check"]: check for check in json.loads(done.out)}

    def certificates(self) -> Sequence[tuple[object, ...]]:
        """The throw-away ones, in the order in which they were issued."""
        return rows(
            self.database,
            "SELECT user_id, revoked_at FROM certificate WHERE user_id = 'clustercert:verify' ORDER BY id",
        )


@contextlib.contextmanager
def served(operator: Operator) -> Iterator[str]:
    """The address of a running service."""
    process = subprocess.Popen(
        [*COMMAND, "--config", operator.config, "serve", "--port", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    try:
        listening = re.search(r"http://127\.0\.0\.1:\d+", process.stderr.readline())
        assert listening is not None
        yield listening[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
