"""Files of ConfigMaps and Secrets, as a kubelet gives them to a pod with `fsGroup`."""

import os
from collections.abc import Mapping
from pathlib import Path

# The user and the group of the pods.
USER = 65532


def project(folder: Path, content: Mapping[str, bytes], mode: int, version: int = 1) -> None:
    """Write the files, or replace all files by a later version. `folder` may exist.

    Source: kubernetes/pkg/volume/util/atomic_writer.go.
    """
    folder.mkdir(exist_ok=True)
    give_to_group(folder, 0o2755)
    new = folder / f"..{version}"
    new.mkdir()
    give_to_group(new, 0o2755)
    for name, data in content.items():
        (new / name).write_bytes(data)
        # With an fsGroup, the group can read the files.
        give_to_group(new / name, mode | 0o440)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    (folder / "..data_tmp").symlink_to(new.name)
    (folder / "..data_tmp").rename(folder / "..data")


def give_to_group(path: Path, mode: int) -> None:
    """Make root the owner, and the pod's group the group. Only for root."""
    os.chown(path, 0, USER)
    path.chmod(mode)
