"""A cluster in the store of a command line's operator."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from clustercert.pki.certificates import chain_pem
from clustercert.pki.client_ca import new_client_ca
from clustercert.pki.keys import new_key
from support.command_line import Operator


def add_cluster(operator: Operator) -> dict[str, Any]:
    """Add the cluster prod to the new project eu-de. Returns the cluster as the command prints it."""
    ca = new_client_ca("kubernetes", new_key("ec-p256"), datetime.now(UTC), timedelta(days=1))
    server_ca = operator.folder / "server-ca.pem"
    server_ca.write_bytes(chain_pem((ca,)))
    operator.output("project", "create", "eu-de")
    there = ("--project", "eu-de", "--internal-url", "https://10.0.0.5:6443")
    added: dict[str, Any] = operator.output_json("cluster", "add", "prod", *there, "--server-ca", server_ca)
    return added


def database(operator: Operator) -> Path:
    """The file of the operator's store."""
    return operator.folder / "data" / "clustercert.db"
