"""The real kubectl from its wheel, and kubeconfig files for it."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def kubectl(kubeconfig: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it with this kubeconfig; the caller judges its exit status."""
    return subprocess.run(
        [
            Path(sys.executable).parent / "kubectl",
            "--kubeconfig",
            kubeconfig,
            "--request-timeout=20s",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def written(folder: Path, kubeconfig: Mapping[str, object] | bytes) -> Path:
    """A kubeconfig in a file of its own, as it came: a JSON document, or bytes in any form."""
    path = folder / "kubeconfig"
    path.touch(mode=0o600)
    path.write_bytes(kubeconfig if isinstance(kubeconfig, bytes) else json.dumps(kubeconfig).encode())
    return path
