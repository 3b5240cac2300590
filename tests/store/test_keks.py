"""Key-encryption keys in a file or variable: who may read them, what is said of a wrong one, how one is replaced."""

import asyncio
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clustercert.custody import KekFile, KekVariable, read_kek_file, write_new_kek_file
from clustercert.errors import CustodyError
from clustercert.sealing import kek_line, new_kek, parse_keks


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
    assert read_kek_file(path) == KekFile(path).read() == (kek,)


def test_an_existing_file_is_not_overwritten(path: Path) -> None:
    path.write_text("something")
    with pytest.raises(CustodyError) as caught:
        write_new_kek_file(path)
    assert sentence(caught) == f"Can't make the file {path} of key-encryption keys: File exists."
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
    """Every write to a file fails, as on a full disk."""
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
        with pytest.raises(CustodyError, match="Can't make the file"):
            write_new_kek_file(new)
        with pytest.raises(CustodyError, match="Can't replace the file"):
            KekFile(path).prepend(new_kek())
    assert read_kek_file(path) == (kek,)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o644, 0o660])
def test_a_file_for_others_is_refused(path: Path, mode: int) -> None:
    write_new_kek_file(path)
    path.chmod(mode)
    with pytest.raises(CustodyError) as caught:
        read_kek_file(path)
    assert sentence(caught) == f"Others than its owner can use the file {path}. Run `chmod 600 {path}`."
    for stricter in (0o600, 0o400, 0o700):
        path.chmod(stricter)
        read_kek_file(path)


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    pipe, folder, large, wrong = (tmp_path / name for name in ("pipe", "folder", "large", "wrong"))
    os.mkfifo(pipe, 0o600)
    folder.mkdir(0o700)
    for file, content in ((large, "#" * 300_000), (wrong, "hunter2")):
        file.touch(0o600)
        file.write_text(content)
    expected = {
        tmp_path / "missing": "Can't read the file {} of key-encryption keys: No such file or directory.",
        pipe: "{} is not a file. Name the file that holds the key-encryption keys.",
        folder: "{} is not a file. Name the file that holds the key-encryption keys.",
        large: "The file {} is too large to hold key-encryption keys.",
        wrong: "The file {} does not hold key-encryption keys: line 1 is not the standard base64 of 32 bytes.",
    }
    for file, words in expected.items():
        with pytest.raises(CustodyError) as caught:
            read_kek_file(file)
        assert sentence(caught) == words.format(file)


def test_a_new_key_stands_in_front_and_the_rest_stays_byte_for_byte(path: Path) -> None:
    old, new = write_new_kek_file(path), new_kek()
    rest = b"# caf\xe9, not UTF-8\x85\r\n\n" + path.read_bytes().rstrip(b"\n")
    path.write_bytes(rest)
    path.chmod(0o400)
    KekFile(path).prepend(new)
    assert path.read_bytes() == kek_line(new).encode() + rest
    assert path.stat().st_mode & 0o777 == 0o400
    assert read_kek_file(path) == (new, old)
    assert sorted(path.parent.iterdir()) == [path]


def test_keys_are_dropped_and_comments_stay(path: Path) -> None:
    keks = [new_kek() for _ in range(3)]
    path.touch(0o600)
    path.write_text(f"# one\n{kek_line(keks[0])}# two\n{kek_line(keks[1])}{kek_line(keks[2])}")
    KekFile(path).drop([keks[0].id, keks[2].id])
    assert path.read_text() == f"# one\n# two\n{kek_line(keks[1])}"


def test_what_a_killed_process_left_beside_the_file_is_overwritten(path: Path) -> None:
    write_new_kek_file(path)
    left = path.with_name(".kek.new")
    left.write_text("half a li")
    KekFile(path).prepend(new_kek())
    assert len(read_kek_file(path)) == 2
    assert not left.exists()


def test_behind_a_link_the_file_is_replaced_and_not_the_link(path: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real = tmp_path / "real" / "keys"
    write_new_kek_file(real)
    path.symlink_to(real)
    KekFile(path).prepend(new_kek())
    assert path.is_symlink()
    assert len(read_kek_file(real)) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_owner_stays(path: Path) -> None:
    write_new_kek_file(path)
    os.chown(path, 12345, 54321)
    KekFile(path).prepend(new_kek())
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)
    assert path.stat().st_mode & 0o777 == 0o600


async def test_who_holds_the_file_keeps_others_waiting_even_when_it_is_replaced(path: Path) -> None:
    write_new_kek_file(path)
    order: list[str] = []

    async def rotate(name: str) -> None:
        source = KekFile(path)
        async with source.held():
            order.append(f"{name} in")
            source.read()
            await asyncio.sleep(0.02)
            source.prepend(new_kek())
            order.append(f"{name} out")

    await asyncio.gather(*(rotate(name) for name in "abc"))
    assert [step[2:] for step in order] == ["in", "out"] * 3
    assert len(read_kek_file(path)) == 4


async def test_a_missing_file_cant_be_held(path: Path) -> None:
    with pytest.raises(CustodyError, match="Can't lock the file"):
        async with KekFile(path).held():
            pytest.fail("held what is not there")


async def test_a_variable_is_read_and_never_written() -> None:
    keks = [new_kek(), new_kek()]
    source = KekVariable("CLUSTERCERT_KEK", "".join(kek_line(kek) for kek in keks))
    assert source.read() == parse_keks(source.text) == tuple(keks)
    assert source.text not in repr(source)
    async with source.held():
        with pytest.raises(CustodyError, match="the environment variable CLUSTERCERT_KEK already"):
            source.prepend(new_kek())
        with pytest.raises(CustodyError, match=f"Take the keys {keks[1].id} out of it"):
            source.drop([keks[1].id])


def test_a_wrong_variable_is_named_and_not_shown() -> None:
    with pytest.raises(CustodyError) as caught:
        KekVariable("CLUSTERCERT_KEK", "hunter2").read()
    assert sentence(caught) == (
        "The environment variable CLUSTERCERT_KEK does not hold key-encryption keys: "
        "line 1 is not the standard base64 of 32 bytes."
    )
