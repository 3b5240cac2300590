"""The same folders give the same image, whoever packs them, where and when."""

import os
import subprocess
from pathlib import Path

import pytest

from scripts.folder_archive import Owner
from scripts.oci_archive import pack_layer, write_archive
from support.image_archive import ImageArchive, read_archive

CREATED = "2026-12-01T00:00:00+00:00"


def tree(folder: Path, order: int = 1) -> Path:
    (folder / "usr" / "bin").mkdir(parents=True)
    for name in ("b", "a", "ä")[::order]:
        (folder / "usr" / name).write_text(name)
    (folder / "usr" / "bin" / "run").write_text("run")
    (folder / "usr" / "bin" / "run").chmod(0o4750)
    (folder / "lib").symlink_to("usr")
    (folder / "state").mkdir(mode=0o700)
    return folder


def packed(folder: Path, path: Path) -> ImageArchive:
    layer = pack_layer(folder, "test", {"state": Owner(65532, 65532, 0o700)})
    digest = write_archive(path, "a:1", [layer], {"User": "65532"}, architecture="amd64", created=CREATED)
    image = read_archive(path)
    assert image.digest == digest
    return image


def test_time_umask_and_order_of_creation_do_not_change_the_archive(tmp_path: Path) -> None:
    first = packed(tree(tmp_path / "first"), tmp_path / "first.tar")
    umask = os.umask(0o077)
    try:
        second = tree(tmp_path / "second", -1)
    finally:
        os.umask(umask)
    for path in second.rglob("*"):
        os.utime(path, (5, 5), follow_symlinks=False)
    assert packed(second, tmp_path / "second.tar").digest == first.digest
    assert (tmp_path / "first.tar").read_bytes() == (tmp_path / "second.tar").read_bytes()


def test_content_changes_the_digest(tmp_path: Path) -> None:
    folder = tree(tmp_path / "folder")
    first = packed(folder, tmp_path / "first.tar")
    (folder / "usr" / "a").write_text("b")
    assert packed(folder, tmp_path / "second.tar").digest != first.digest


def test_files_belong_to_root_and_none_is_setuid(tmp_path: Path) -> None:
    image = packed(tree(tmp_path / "folder"), tmp_path / "image.tar")
    seen = {name: (each.uid, each.gid, each.mode, each.mtime) for name, each in image.members.items()}
    assert seen == {
        "lib": (0, 0, 0o777, 1),
        "state": (65532, 65532, 0o700, 1),
        "usr": (0, 0, 0o755, 1),
        "usr/a": (0, 0, 0o644, 1),
        "usr/b": (0, 0, 0o644, 1),
        "usr/bin": (0, 0, 0o755, 1),
        "usr/bin/run": (0, 0, 0o755, 1),
        "usr/ä": (0, 0, 0o644, 1),
    }
    assert image.members["lib"].linkname == "usr"
    assert image.config["rootfs"]["diff_ids"][0].startswith("sha256:")
    assert (image.config["architecture"], image.config["created"]) == ("amd64", CREATED)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    folder = tree(tmp_path / "folder")
    subprocess.run(("mkfifo", folder / "pipe"), check=True)
    with pytest.raises(ValueError, match="pipe is not a file, a folder or a symbolic link"):
        pack_layer(folder, "test")
