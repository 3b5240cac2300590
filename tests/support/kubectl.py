"""The real kubectl, and kubeconfig files for it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from support.wait import SECONDS


def program() -> Path:
    """kubectl from KUBEBUILDER_ASSETS if set, else from its wheel."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    return (Path(assets) if assets else Path(sys.executable).parent) / "kubectl"


def kubectl(
    kubeconfig: Path, *arguments: str | Path, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run it with this kubeconfig; the caller judges its exit status."""
    return subprocess.run(
        [program(), "--kubeconfig", kubeconfig, f"--request-timeout={SECONDS:.0f}s", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=2 * SECONDS,
        check=False,
        # It caches discovery by address, and another server of ours may get the same port.
        env={**os.environ, "KUBECACHEDIR": str(kubeconfig.with_suffix(".cache"))},
    )


def written(folder: Path, kubeconfig: Mapping[str, object] | bytes, name: str = "kubeconfig") -> Path:
    """Write a kubeconfig to a file: a JSON document, or bytes."""
    path = folder / name
    path.touch(mode=0o600)
    path.write_bytes(kubeconfig if isinstance(kubeconfig, bytes) else json.dumps(kubeconfig).encode())
    return path
