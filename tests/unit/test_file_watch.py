"""Changes to the settings and policy files, and when to try again."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from clustercert.server.file_watch import FileWatch
from clustercert.server.reloading import MOST_SECONDS, Retry


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "policy.toml").write_text("rules = []\n")
    path = tmp_path / "clustercert.toml"
    path.write_text(f"[policy]\nfile = '{tmp_path / 'policy.toml'}'\n")
    return path


def replaced(path: Path) -> None:
    new = path.with_suffix(".new")
    new.write_text("rules = [ ]\n")
    new.rename(path)


def has_settled_change(watch: FileWatch) -> bool:
    return watch.has_settled() and watch.has_changed()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "policy.toml").write_text("rules = [] # changed\n"),
        lambda folder: replaced(folder / "policy.toml"),
        lambda folder: (folder / "policy.toml").unlink(),
        lambda folder: (folder / "policy.toml").chmod(0o600),
        lambda folder: (folder / "clustercert.toml").write_text("policy = "),
    ],
    ids=["written", "replaced", "removed", "readable", "settings"],
)
def test_a_change_is_noticed_once_it_has_settled(config: Path, change: Callable[[Path], object]) -> None:
    watch = FileWatch(config)
    assert not has_settled_change(watch)
    change(config.parent)
    assert watch.has_changed()
    assert not has_settled_change(watch)
    assert has_settled_change(watch)
    assert has_settled_change(watch)
    watch.mark()
    assert not watch.has_changed()
    assert not has_settled_change(watch)


def test_a_file_that_is_still_written_has_not_settled(config: Path) -> None:
    watch, policy = FileWatch(config), config.parent / "policy.toml"
    for number in range(5):
        policy.write_text("#" * number)
        assert not has_settled_change(watch)
    assert has_settled_change(watch)


def test_the_links_of_a_config_map_are_followed(tmp_path: Path) -> None:
    """A kubelet writes a new folder, and replaces the link to the old one."""
    for number in (1, 2):
        folder = tmp_path / f"..{number}"
        folder.mkdir()
        (folder / "policy.toml").write_text(f"rules = [] # {number}\n")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "policy.toml").symlink_to("..data/policy.toml")
    config = tmp_path / "clustercert.toml"
    config.write_text(f"[policy]\nfile = '{tmp_path / 'policy.toml'}'\n")
    watch = FileWatch(config)
    (tmp_path / "..data_tmp").symlink_to("..2")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    assert not has_settled_change(watch)
    assert has_settled_change(watch)


def test_a_policy_file_that_the_settings_name_later_is_watched(config: Path) -> None:
    watch, other = FileWatch(config), config.parent / "other.toml"
    config.write_text(f"[policy]\nfile = '{other}'\n")
    watch.mark()
    other.write_text("rules = []\n")
    assert watch.has_changed()


def test_the_environment_may_name_the_policy_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = config.parent / "policy.toml"
    monkeypatch.setenv("CLUSTERCERT_POLICY__FILE", str(policy))
    watch = FileWatch(None)
    os.utime(policy, (0, 0))
    assert watch.has_changed()


@pytest.mark.parametrize("text", ["policy = ", "policy = 1", "[policy]\nfile = 1", "a = " + "[" * 5000])
def test_settings_that_cannot_be_read_are_still_watched(config: Path, text: str) -> None:
    config.write_text(text)
    watch = FileWatch(config)
    assert not watch.has_changed()
    config.write_text("")
    assert watch.has_changed()


def test_the_delay_doubles_up_to_a_minute() -> None:
    now = 0.0
    retry, delays = Retry(clock=lambda: now), []
    assert not retry.is_due()
    for _ in range(8):
        retry.back_off()
        begun = now
        while not retry.is_due():
            now += 0.5
        delays.append(now - begun)
    assert delays == [1, 2, 4, 8, 16, 32, MOST_SECONDS, MOST_SECONDS]
    retry.clear()
    assert not retry.is_due()
    retry.plan(300)
    now += 300
    assert retry.is_due()
