"""Key-encryption keys in a file or variable: access, errors, and replacement."""

import asyncio
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clustercert.custody.keks import KekFile, KekVariable, write_new_kek_file
from clustercert.model.errors import CustodyError
from clustercert.pki.envelope import kek_line, new_kek, parse_keks


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kek"


def sentence(failing: pytest.ExceptionInfo[CustodyError]) -> str:
    return failing.value.message


def test_a_new_file_is_its_owners_alone_and_holds_the_key(path: Path) -> None:
    umask = os.umask(0)
    try:
        kek = write_new_kek_file(path)
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o600
    assert KekFile(path).read() == (kek,)


def test_an_existing_file_is_not_overwritten(path: Path) -> None:
    path.write_text("something")
    with pytest.raises(CustodyError) as caught:
        write_new_kek_file(path)
    assert sentence(caught) == f"Can't create the file {path} of key-encryption keys: File exists."
    assert path.read_text() == "something"


def test_a_new_file_follows_no_link(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CustodyError):
        write_new_kek_file(path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_that_cant_be_written_is_not_left_half(tmp_path: Path) -> None:
    with pytest.raises(CustodyError) as caught:
        write_new_kek_file(tmp_path / "missing" / "kek")
    assert sentence(caught).endswith("of key-encryption keys: No such file or directory.")
    assert list(tmp_path.iterdir()) == []


@contextmanager
def no_room() -> Iterator[None]:
    """Make every write to a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_what_was_there(path: Path) -> None:
    new = path.with_name("new")
    kek = write_new_kek_file(path)
    with no_room():
        with pytest.raises(CustodyError, match="Can't create the file"):
            write_new_kek_file(new)
        with pytest.raises(CustodyError, match="Can't replace the file"):
            KekFile(path).prepend(new_kek())
    assert KekFile(path).read() == (kek,)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o644, 0o660])
def test_a_file_for_others_is_refused(path: Path, mode: int) -> None:
    write_new_kek_file(path)
    path.chmod(mode)
    with pytest.raises(CustodyError) as caught:
        KekFile(path).read()
    assert sentence(caught) == f"The file {path} is accessible by other users. Run `chmod 600 {path}`."
    for stricter in (0o600, 0o400, 0o700):
        path.chmod(stricter)
        KekFile(path).read()


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder that all users can enter. The test runs as a user without rights, in the group 65532."""
    if os.geteuid() != 0:
        pytest.skip("only root can create files of root, and become another user")
    groups = os.getgroups()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        os.setgroups([65532])
        os.seteuid(65532)
        try:
            yield Path(folder)
        finally:
            os.seteuid(0)
            os.setgroups(groups)


def as_root(path: Path, content: str, mode: int, *, owner: int = 0) -> Path:
    """Create a file of the group 65532."""
    os.seteuid(0)
    path.write_text(content)
    os.chown(path, owner, 65532)
    path.chmod(mode)
    os.seteuid(65532)
    return path


@pytest.mark.parametrize("mode", [0o440, 0o640])
def test_the_group_may_read_a_file_of_root_as_in_a_kubernetes_secret(unprivileged: Path, mode: int) -> None:
    kek = new_kek()
    secret = as_root(unprivileged / "kek", kek_line(kek), mode)
    assert KekFile(secret).read() == (kek,)


@pytest.mark.parametrize(
    ("owner", "mode"), [(0, 0o444), (0, 0o660), (0, 0o450), (65532, 0o440), (65532, 0o640), (1000, 0o440)]
)
def test_the_group_may_not_change_a_file_of_root_nor_read_one_of_another_user(
    unprivileged: Path, owner: int, mode: int
) -> None:
    secret = as_root(unprivileged / "kek", kek_line(new_kek()), mode, owner=owner)
    with pytest.raises(CustodyError, match=r"is accessible by other users\. Run `chmod (440|600) ") as caught:
        KekFile(secret).read()
    # The service could not read a file of root with mode 0600.
    assert ("chmod 440" in sentence(caught)) == (owner == 0)


def test_a_file_that_the_service_can_not_read_is_refused_with_what_to_do(unprivileged: Path) -> None:
    secret = as_root(unprivileged / "kek", kek_line(new_kek()), 0o600)
    with pytest.raises(CustodyError) as caught:
        KekFile(secret).read()
    assert sentence(caught) == (
        f"The user 65532 can't read the file {secret}. Run `chown 65532 {secret}`, or, if root must own the file,"
        f" `chown 0:{os.getegid()} {secret}` and `chmod 440 {secret}`."
    )


def test_a_key_file_in_a_folder_of_root_is_not_replaced_and_the_message_says_what_to_do(
    unprivileged: Path,
) -> None:
    kek = new_kek()
    path = as_root(unprivileged / "kek", kek_line(kek), 0o600, owner=65532)
    for change in (KekFile(path).add(), write_in(unprivileged)):
        with pytest.raises(CustodyError) as caught:
            asyncio.run(change)
        assert sentence(caught).endswith(
            f"Permission denied. The user 65532 can't write into the folder {unprivileged}, which belongs to root. Name"
            " a path that 65532 may use, or give 65532 access to it. The user 65532 needs a folder of its own for this"
            " file: create it with `install -d -m 0700 -o 65532 FOLDER`, move the file there, and correct kek_file."
        )
    assert KekFile(path).read() == (kek,)


async def write_in(folder: Path) -> None:
    write_new_kek_file(folder / "new")


def test_a_key_file_below_a_folder_that_the_user_can_not_enter_is_refused_with_what_to_do(
    unprivileged: Path,
) -> None:
    os.seteuid(0)
    (unprivileged / "private").mkdir(mode=0o700)
    as_root(unprivileged / "private" / "kek", kek_line(new_kek()), 0o600, owner=65532)
    os.seteuid(65532)
    with pytest.raises(CustodyError) as caught:
        KekFile(unprivileged / "private" / "kek").read()
    assert sentence(caught) == (
        f"The file {unprivileged}/private/kek can't be read. The user 65532 can't enter the folder"
        f" {unprivileged}/private, which belongs to root. Name a path that 65532 may use, or run the command as root."
    )


def test_an_invalid_key_file_is_refused(tmp_path: Path) -> None:
    pipe, folder, large, wrong = (tmp_path / name for name in ("pipe", "folder", "large", "wrong"))
    os.mkfifo(pipe, 0o600)
    folder.mkdir(0o700)
    for file, content in ((large, "#" * 300_000), (wrong, "hunter2")):
        file.touch(0o600)
        file.write_text(content)
    expected = {
        tmp_path / "missing": "Can't read the file {} of key-encryption keys: No such file or directory.",
        pipe: "{} is not a file. Name the file that contains the secret.",
        folder: "Can't read the file {} of key-encryption keys: Is a directory.",
        large: "The file {} has more than 262144 bytes. Name the file that contains the secret.",
        wrong: "The file {} does not have valid key-encryption keys: line 1 is not the standard base64 of 32 bytes.",
    }
    for file, words in expected.items():
        with pytest.raises(CustodyError) as caught:
            KekFile(file).read()
        assert sentence(caught) == words.format(file)


def test_a_new_key_is_first_and_the_rest_of_the_file_is_unchanged(path: Path) -> None:
    old, new = write_new_kek_file(path), new_kek()
    rest = b"# caf\xe9, not UTF-8\x85\r\n\n" + path.read_bytes().rstrip(b"\n")
    path.write_bytes(rest)
    path.chmod(0o400)
    KekFile(path).prepend(new)
    assert path.read_bytes() == kek_line(new).encode() + rest
    assert path.stat().st_mode & 0o777 == 0o400
    assert KekFile(path).read() == (new, old)
    assert sorted(path.parent.iterdir()) == [path]


async def test_keys_are_removed_and_comments_stay(path: Path) -> None:
    keks = [new_kek() for _ in range(3)]
    path.touch(0o600)
    path.write_text(f"# one\n{kek_line(keks[0])}# two\n{kek_line(keks[1])}{kek_line(keks[2])}")
    await KekFile(path).remove([keks[0].id, keks[2].id])
    assert path.read_text() == f"# one\n# two\n{kek_line(keks[1])}"


def test_the_leftover_of_a_killed_process_is_overwritten(path: Path) -> None:
    write_new_kek_file(path)
    left = path.with_name(".kek.new")
    left.write_text("half a li")
    KekFile(path).prepend(new_kek())
    assert len(KekFile(path).read()) == 2
    assert not left.exists()


def test_a_link_is_kept_and_its_target_replaced(path: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real = tmp_path / "real" / "keys"
    write_new_kek_file(real)
    path.symlink_to(real)
    KekFile(path).prepend(new_kek())
    assert path.is_symlink()
    assert len(KekFile(real).read()) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_owner_stays(path: Path) -> None:
    write_new_kek_file(path)
    os.chown(path, 12345, 54321)
    KekFile(path).prepend(new_kek())
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)
    assert path.stat().st_mode & 0o777 == 0o600


async def test_the_lock_holds_even_if_the_file_is_replaced(path: Path) -> None:
    write_new_kek_file(path)
    order: list[str] = []

    async def rotate(name: str) -> None:
        source = KekFile(path)
        async with source.lock():
            order.append(f"{name} in")
            source.read()
            await asyncio.sleep(0.02)
            source.prepend(new_kek())
            # Others try to lock the new file meanwhile.
            await asyncio.sleep(0.2)
            order.append(f"{name} out")

    await asyncio.gather(*(rotate(name) for name in "abc"))
    assert [step[2:] for step in order] == ["in", "out"] * 3
    assert len(KekFile(path).read()) == 4


async def test_a_missing_file_cannot_be_locked(path: Path) -> None:
    with pytest.raises(CustodyError, match="Can't lock the file"):
        async with KekFile(path).lock():
            pytest.fail("locked a missing file")


async def test_a_variable_is_read_and_never_written() -> None:
    keks = [new_kek(), new_kek()]
    source = KekVariable("CLUSTERCERT_KEK", "".join(kek_line(kek) for kek in keks))
    assert await source.keks() == parse_keks(source.text) == tuple(keks)
    assert source.text not in repr(source)
    async with source.lock():
        with pytest.raises(CustodyError, match="change the environment variable CLUSTERCERT_KEK"):
            await source.add()
        with pytest.raises(CustodyError, match=f"Remove the keys {keks[1].id} from this variable"):
            await source.remove([keks[1].id])


async def test_a_wrong_variable_is_named_and_not_shown() -> None:
    with pytest.raises(CustodyError) as caught:
        await KekVariable("CLUSTERCERT_KEK", "hunter2").keks()
    assert sentence(caught) == (
        "The environment variable CLUSTERCERT_KEK does not have valid key-encryption keys: "
        "line 1 is not the standard base64 of 32 bytes."
    )
