import os
import pwd
import re
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

import pytest

from clustercert.cli.credential import cache, entry
from clustercert.cli.login import profile
from clustercert.cli.login.profile import Profile
from clustercert.cli.login.token_storage import JOBS
from clustercert.cli.login.trust import read_ca
from clustercert.cli.lookup import in_domain, only_cluster, only_project
from clustercert.cli.options import CommandError, NotLoggedIn, UnknownName
from clustercert.client import ProjectRef
from clustercert.client.connection import ApiError
from clustercert.secure_file import make_private_folder, read_regular_file, write_private
from support.command_line import run_command

LATER = datetime(2100, 1, 1, tzinfo=UTC)
BY_TOKEN = Profile("https://s", "alice", "p" * 32, "eu-de", "CA", token="t0ken", expires_at=LATER)
BY_KEY = Profile("https://s", "AK", "p" * 32, "eu-de", access_key="AK", secret_key="s3cret")


@pytest.mark.parametrize("kept", [BY_TOKEN, BY_KEY])
def test_only_the_owner_can_read_a_profile(tmp_path: Path, kept: Profile) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    path = profile.save("work", kept, environment)

    assert profile.load("work", environment) == kept
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    folders = [tmp_path / "clustercert", tmp_path / "clustercert" / "profiles"]
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o700, 0o700]
    profile.delete("work", environment)
    assert list(path.parent.iterdir()) == []
    for act in (profile.load, profile.delete):
        with pytest.raises(CommandError):
            act("work", environment)


def test_a_profile_shows_no_secret() -> None:
    assert "t0ken" not in repr(BY_TOKEN)
    assert "s3cret" not in repr(BY_KEY)


@pytest.mark.parametrize("name", ["", "..", "a/b", "../../x", ".hidden", "a" * 65, "a\n"])
def test_a_profiles_name_is_not_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(CommandError, match="name"):
        profile.save(name, BY_KEY, {"XDG_CONFIG_HOME": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"expires_at": "x"}', '{"expires_at": null, "more": 1}']
)
def test_a_damaged_profile_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    profile.save("default", BY_KEY, environment).write_text(content)
    with pytest.raises(CommandError, match=r"damaged\. Delete it, and run `clustercert login URL`\."):
        profile.load("default", environment)


def test_an_expired_login_is_not_used() -> None:
    expired = Profile(
        "https://s", "alice", "p", "eu-de", token="t", expires_at=datetime.now(UTC) - timedelta(seconds=1)
    )
    with pytest.raises(CommandError, match="expired"):
        expired.client()


def test_the_advice_to_log_in_again_names_the_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("CLUSTERCERT_PROFILE", raising=False)
    ended = replace(BY_TOKEN, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    for name in ("default", "work"):
        profile.save(name, ended, os.environ)

    def advice(name: str) -> list[str]:
        found = profile.load(name, os.environ)
        with pytest.raises(NotLoggedIn) as expired:
            found.client()
        with pytest.raises(NotLoggedIn) as refused, found.explain_rejection():
            raise ApiError("Authorization failed.", 401)
        texts = [expired.value.message, refused.value.message, profile.log_in_again(name)]
        return [re.findall("`clustercert login(.*?)`", text)[0] for text in texts]

    assert advice("default") == [""] * 3
    assert advice("work") == [" --profile work"] * 3
    # Without the option, the command would log in to the other profile.
    profile.use("work", os.environ)
    assert advice("default") == [" --profile default"] * 3


def test_unwritable_profiles_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "clustercert").write_text("a file")
    with pytest.raises(CommandError, match=r"can't be saved .* Set HOME or XDG_CONFIG_HOME to a folder that"):
        profile.save("default", BY_KEY, {"XDG_CONFIG_HOME": str(tmp_path)})
    with pytest.raises(CommandError, match="can't be read"):
        read_ca(tmp_path / "missing")


def test_a_private_file_replaces_the_target_of_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o644)
    link.symlink_to(target)
    write_private(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target"]


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    """Like /dev/null, which root could replace for all programs of the machine."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="Is not a regular file"):
        write_private(tmp_path / "pipe", "secret")
    assert [(each.name, each.is_fifo()) for each in tmp_path.iterdir()] == [("pipe", True)]


def test_a_private_file_does_not_follow_a_link_without_a_target(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="symbolic link to a file that does not exist"):
        write_private(link, "secret")
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link to another user")
@pytest.mark.parametrize("foreign", ["link", "second", "target"])
def test_a_link_is_followed_only_if_all_of_it_belongs_to_the_caller(tmp_path: Path, foreign: str) -> None:
    target = tmp_path / "target"
    target.write_text("old")
    (tmp_path / "second").symlink_to(target)
    (tmp_path / "link").symlink_to("second")
    write_private(tmp_path / "link", "own")
    os.chown(tmp_path / foreign, 65534, -1, follow_symlinks=False)

    with pytest.raises(PermissionError, match="belongs to another user"):
        write_private(tmp_path / "link", "new")

    assert target.read_text() == "own"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "second", "target"]


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(OSError, match="symbolic links"):
        write_private(tmp_path / "one", "new")


def test_a_link_in_the_way_is_replaced_if_it_must_not_be_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_private(link, "new", follow_links=False)
    assert not link.is_symlink()
    assert (link.read_text(), target.read_text()) == ("new", "old")


def test_a_private_folder_behind_a_link_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir(mode=0o755)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere").chmod(0o755)
    (tmp_path / "link").symlink_to("elsewhere")
    make_private_folder(tmp_path / "own")
    make_private_folder(tmp_path / "link")
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o755


def test_only_regular_files_are_read_and_only_in_part(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    os.mkfifo(tmp_path / "pipe")
    assert read_regular_file(tmp_path / "file", 4) == b"1234"
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match=r"(?i)is (not a file|a directory)"):
            read_regular_file(path, 4)


def test_a_private_file_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_private(tmp_path / "folder", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


ONE, TWO, THREE = (
    ProjectRef(digit * 32, name, domain, digit * 32)
    for digit, name, domain in (("1", "eu-de", "Default"), ("2", "eu-nl", "Default"), ("3", "eu-de", "acme"))
)


def test_projects_that_look_the_same_are_told_apart_by_id() -> None:
    places = (("a", "acme", "eu-de"), ("b", "acme", "eu-de"), ("c", "x/y", "eu-de"), ("d", "globex", "eu de"))
    found: list[dict[str, object]] = [
        {"id": f"c-{key}", "project_id": key, "domain": domain, "project": name}
        for key, domain, name in places
    ]
    said = r"named prod\. Write a/prod, b/prod, c/prod or 'globex/eu de/prod'\."
    with pytest.raises(CommandError, match=said):
        only_cluster("prod", found)


def test_a_project_is_named_by_name_or_id() -> None:
    assert only_project((ONE, TWO), "eu-nl") == TWO
    assert only_project((ONE, TWO), ONE.id) == ONE
    assert only_project((ONE, TWO, THREE), "acme/eu-de") == THREE
    with pytest.raises(UnknownName, match=r"no role in a project eu-d\. Did you mean eu-de"):
        only_project((ONE, TWO), "eu-d")
    several = r"Did you mean eu-de\? Your projects: Default/eu-de, acme/eu-de\."
    with pytest.raises(UnknownName, match=several):
        only_project((ONE, THREE), "eu-d")
    both = r"projects are named eu-de\. Write Default/eu-de or acme/eu-de\."
    with pytest.raises(CommandError, match=both):
        only_project((ONE, TWO, THREE), "eu-de")
    assert only_project(in_domain((ONE, TWO, THREE), "acme"), "eu-de") == THREE
    assert in_domain((ONE, TWO, THREE), ONE.domain_id) == (ONE,)
    with pytest.raises(UnknownName, match=r"of the domain acm\. Did you mean acme\?"):
        in_domain((ONE, THREE), "acm")


def test_the_current_profile_is_the_one_chosen_last(tmp_path: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert profile.current(environment) == "default"
    for name in ("home", "work"):
        profile.save(name, BY_TOKEN, environment)
    profile.use("work", environment)
    assert profile.current(environment) == "work"
    assert profile.current(environment | {"CLUSTERCERT_PROFILE": "home"}) == "home"
    assert profile.names(environment) == ["home", "work"]
    with pytest.raises(UnknownName, match=r"no profile wrk\. Did you mean work"):
        profile.use("wrk", environment)


def test_what_cannot_be_deleted_from_the_cache_does_not_keep_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "clustercert" / "credentials"
    (folder / "work,a,not-a-file").mkdir(parents=True)
    names = ["work,a,not-a-file", "work,b,c", "work,b,c.lock", "worker,b,c"]
    for name in names[1:]:
        (folder / name).touch()

    with monkeypatch.context() as patched:
        patched.setattr("os.listdir", lambda _folder: names)
        cache.clear("work")

    assert sorted(path.name for path in folder.iterdir()) == ["work,a,not-a-file", "worker,b,c"]


@pytest.mark.parametrize("kept", [BY_TOKEN, BY_KEY])
def test_a_logged_out_profile_keeps_no_secret(tmp_path: Path, kept: Profile) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    path = profile.save("default", profile.without_login(kept), environment)
    assert "t0ken" not in path.read_text()
    assert "s3cret" not in path.read_text()
    found = profile.remembered("default", environment)
    assert found is not None
    assert (found.url, found.user, found.ca_pem) == (kept.url, kept.user, kept.ca_pem)
    with pytest.raises(NotLoggedIn, match=r"You are not logged in at https://s\. Run `clustercert login`\."):
        profile.load("default", environment)


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user id without an account, as containers have, in an empty environment."""

    def no_account(_uid: int) -> NoReturn:
        raise KeyError

    for name in os.environ:
        if name in {"HOME", "KUBECONFIG", "USERPROFILE"} or name.startswith(("XDG_", "CLUSTERCERT_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", no_account)


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize(
    ("command", "variable"),
    [
        (("status",), "XDG_CONFIG_HOME"),
        (("profile", "list"), "XDG_CONFIG_HOME"),
        (("kubeconfig", "list"), "KUBECONFIG"),
        (("refresh",), "XDG_DATA_HOME"),
    ],
)
def test_a_command_without_a_home_says_what_to_set(command: tuple[str, ...], variable: str) -> None:
    done = run_command(*command)
    assert (done.code, done.out) == (1, "")
    hint = f" {JOBS}" if variable == "XDG_CONFIG_HOME" else ""
    assert done.err == f"Error: This user has no home directory. Set HOME or {variable}.{hint}\n"


@pytest.mark.usefixtures("homeless")
def test_variables_with_a_login_need_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("OS_AUTH_URL", "http://127.0.0.1:9"), ("OS_USERNAME", "a"), ("OS_PASSWORD", "b")):
        monkeypatch.setenv(name, value)
    assert "Can't connect to http://127.0.0.1:9" in run_command("status").err
    monkeypatch.setenv("CLUSTERCERT_URL", "http://127.0.0.1:8")
    monkeypatch.setenv("CLUSTERCERT_TOKEN", "t")
    for command in (("status",), ("credential", "prod")):
        done = run_command(*command)
        assert (done.code, "Can't connect to http://127.0.0.1:8" in done.err) == (6, True)


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("options", [(), ("--profile", "default", "--project", "p")])
def test_the_exec_plugin_without_a_home_says_what_to_set(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    assert entry.run(["prod", *options]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == (
        "",
        f"clustercert: This user has no home directory. Set HOME or XDG_CONFIG_HOME. {JOBS}\n",
    )
