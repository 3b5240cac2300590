import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clustercert.cli import profile
from clustercert.cli.logging_in import chosen, read_ca
from clustercert.cli.profile import Profile, ProfileError
from clustercert.client import Named
from clustercert.private_file import write_private

LATER = datetime(2100, 1, 1, tzinfo=UTC)
BY_TOKEN = Profile("https://s", "alice", "p" * 32, "eu-de", "CA", token="t0ken", expires_at=LATER)
BY_KEY = Profile("https://s", "AK", "p" * 32, "eu-de", access_key="AK", secret_key="s3cret")


@pytest.mark.parametrize("kept", [BY_TOKEN, BY_KEY])
def test_a_profile_is_kept_for_its_owner_alone(tmp_path: Path, kept: Profile) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    path = profile.save("work", kept, environment)

    assert profile.load("work", environment) == kept
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    folders = [tmp_path / "clustercert", tmp_path / "clustercert" / "profiles"]
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o700, 0o700]
    profile.forget("work", environment)
    assert list(path.parent.iterdir()) == []
    for act in (profile.load, profile.forget):
        with pytest.raises(ProfileError):
            act("work", environment)


def test_a_profile_shows_no_secret() -> None:
    assert "t0ken" not in repr(BY_TOKEN)
    assert "s3cret" not in repr(BY_KEY)


@pytest.mark.parametrize("name", ["", "..", "a/b", "../../x", ".hidden", "a" * 65, "a\n"])
def test_a_name_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProfileError, match="name"):
        profile.save(name, BY_KEY, {"XDG_CONFIG_HOME": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"expires_at": "x"}', '{"expires_at": null, "more": 1}']
)
def test_a_damaged_profile_says_what_to_do(tmp_path: Path, content: str) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    profile.save("default", BY_KEY, environment).write_text(content)
    with pytest.raises(ProfileError, match="clustercert login"):
        profile.load("default", environment)


def test_an_expired_login_is_not_tried() -> None:
    expired = Profile(
        "https://s", "alice", "p", "eu-de", token="t", expires_at=datetime.now(UTC) - timedelta(seconds=1)
    )
    with pytest.raises(ProfileError, match="expired"):
        expired.client()


def test_what_cannot_be_written_or_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "clustercert").write_text("a file")
    with pytest.raises(ProfileError, match="can't be written"):
        profile.save("default", BY_KEY, {"XDG_CONFIG_HOME": str(tmp_path)})
    with pytest.raises(ProfileError, match="can't be read"):
        read_ca(tmp_path / "missing")


def test_a_private_file_replaces_what_a_link_leads_to(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o644)
    link.symlink_to(target)
    write_private(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target"]


def test_a_private_file_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_private(tmp_path / "folder", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


ONE, TWO = Named("1" * 32, "eu-de"), Named("2" * 32, "eu-nl")


def test_a_project_is_chosen_by_name_or_id_or_because_it_is_the_only_one() -> None:
    assert chosen((ONE,), None) == ONE
    assert chosen((ONE, TWO), "eu-nl") == TWO
    assert chosen((ONE, TWO), ONE.id) == ONE


@pytest.mark.parametrize(
    ("projects", "wanted", "said"),
    [((), None, "no project"), ((ONE, TWO), None, "--project"), ((ONE, TWO), "x", "no role in a project x")],
)
def test_a_project_that_cannot_be_chosen_is_asked_for(
    projects: tuple[Named, ...], wanted: str | None, said: str
) -> None:
    with pytest.raises(ProfileError, match=said):
        chosen(projects, wanted)
