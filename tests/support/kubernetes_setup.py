"""The command `kubernetes setup` and the folder that it writes."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from support.operated_cluster import OperatedCluster

# Nothing listens on this port: the files do not depend on the handshake.
SERVICE = "https://127.0.0.1:1"


def files(site: OperatedCluster) -> dict[str, str]:
    """The files of the folder by name."""
    return {path.name: path.read_text() for path in site.folder.iterdir()}


def set_up(site: OperatedCluster, *options: str | Path) -> Sequence[str | Path]:
    """The command that writes the folder."""
    return (
        "kubernetes",
        "setup",
        "prod",
        "--out",
        site.folder,
        "--webhook-url",
        SERVICE,
        *options,
    )


def update(site: OperatedCluster, *options: str | Path) -> Sequence[str | Path]:
    """The command that updates the folder."""
    return ("kubernetes", "setup", "prod", "--out", site.folder, "--force", *options)


def server(site: OperatedCluster) -> str:
    """The address in the webhook's kubeconfig."""
    return str(yaml.safe_load(files(site)["webhook.kubeconfig"])["clusters"][0]["cluster"]["server"])
