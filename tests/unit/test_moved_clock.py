"""Times that the command line saves, on a machine whose clock is wrong, and is then set."""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import pytest

from clustercert.cli import clock
from clustercert.cli.credential import access_request, cache
from clustercert.cli.credential.cache import RequestMark
from clustercert.cli.credential.certificate import Credential
from clustercert.cli.credential.certificate_files import CertificateFile
from clustercert.cli.file_lock import forget_failure, locked
from clustercert.cli.terminal.notices import is_new
from clustercert.policy.lifetime import BACKDATE
from clustercert.secure_file import write_private
from support.leaf_builder import self_signed_pem

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
PAUSE = 600.0
FAILED = (3, "It expired.")


class Machine:
    """A machine whose clock a test sets. Its time passes only in `wait`.

    Attributes:
        true_time: what the clock of the service says, in seconds since the epoch.
    """

    def __init__(self) -> None:
        self.true_time = time.time()
        self._ahead = 0.0
        self._running = 5_000.0

    @property
    def now(self) -> datetime:
        """What the clock says."""
        return datetime.fromtimestamp(self.time(), UTC)

    def time(self) -> float:
        return self.true_time + self._ahead

    def since_boot(self, _clock: int = 0) -> float:
        return self._running

    def set_clock(self, ahead: timedelta) -> None:
        self._ahead = ahead.total_seconds()

    def wait(self, passed: timedelta) -> None:
        self.true_time += passed.total_seconds()
        self._running += passed.total_seconds()

    def boot(self) -> None:
        self._running = 20.0


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    found = Machine()
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    with (
        patch("time.time", found.time),
        patch("time.clock_gettime", found.since_boot),
        patch("time.monotonic", found.since_boot),
    ):
        yield found


def recent_failure(folder: Path) -> tuple[int, str] | None:
    with locked(str(folder / "entry")) as lock:
        return lock.failure_since(time.time() - PAUSE)


def fail(folder: Path) -> None:
    with locked(str(folder / "entry")) as lock:
        lock.record_failure(*FAILED)


def test_a_failure_is_remembered_for_its_minutes(machine: Machine, tmp_path: Path) -> None:
    fail(tmp_path)
    machine.wait(9 * MINUTE)
    assert recent_failure(tmp_path) == FAILED
    machine.wait(2 * MINUTE)
    assert recent_failure(tmp_path) is None


@pytest.mark.parametrize("ahead", [500 * 24 * HOUR, 25 * HOUR, 2 * HOUR, 5 * MINUTE, -2 * HOUR])
@pytest.mark.parametrize("booted", [False, True])
def test_a_failure_is_forgotten_when_the_clock_is_set(
    machine: Machine, tmp_path: Path, ahead: timedelta, booted: bool
) -> None:
    machine.set_clock(ahead)
    fail(tmp_path)
    machine.set_clock(timedelta(0))
    if booted:
        machine.boot()
    assert recent_failure(tmp_path) is None
    # Nor when the clock gets to the time of the failure.
    machine.wait(max(ahead, HOUR))
    assert recent_failure(tmp_path) is None


def test_a_failure_in_the_future_is_ignored(machine: Machine, tmp_path: Path) -> None:
    """The clock was set back by less than a minute."""
    machine.set_clock(50 / 60 * MINUTE)
    fail(tmp_path)
    machine.set_clock(timedelta(0))
    assert recent_failure(tmp_path) is None


@pytest.mark.parametrize("damaged", ["", "1", "1 2 3", "x 1 3 a", "nan 1 3 a", "NOW inf 3 a"])
def test_a_damaged_failure_is_ignored(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "entry.lock").write_text(damaged.replace("NOW", str(time.time())))
    assert recent_failure(tmp_path) is None


def test_a_failure_can_be_deleted_while_its_lock_is_held(tmp_path: Path) -> None:
    fail(tmp_path)
    with locked(str(tmp_path / "entry")):
        forget_failure(str(tmp_path / "entry.lock"))
    assert recent_failure(tmp_path) is None
    # Nothing is created, and no other file is emptied through a link.
    forget_failure(str(tmp_path / "other.lock"))
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "linked.lock").symlink_to(tmp_path / "kept")
    forget_failure(str(tmp_path / "linked.lock"))
    assert (tmp_path / "kept").read_text() == "kept"
    assert not (tmp_path / "other.lock").exists()


def issued(machine: Machine, folder: Path, lifetime: timedelta) -> str:
    """The cache file of a certificate that the service issued just now."""
    login = folder / "login"
    login.touch()
    not_after = datetime.fromtimestamp(machine.true_time, UTC) + lifetime
    credential = Credential("C", "K", lifetime, not_after, cache.login_state(str(login)), "Default/alice")
    path = folder / "entry"
    write_private(path, cache.rendered(credential.cache_entry(machine.time())))
    return str(path)


def is_fresh(machine: Machine, path: str) -> bool:
    found = cache.read(path)
    assert found is not None
    return found.is_fresh(machine.time())


@pytest.mark.parametrize("booted", [False, True])
@pytest.mark.parametrize("hours", [25, 5, -5, -25])
def test_an_expired_certificate_is_not_used_after_the_clock_was_set(
    machine: Machine, tmp_path: Path, hours: int, booted: bool
) -> None:
    machine.set_clock(hours * HOUR)
    path = issued(machine, tmp_path, 8 * HOUR)
    machine.set_clock(timedelta(0))
    if booted:
        machine.boot()
    # By its true times it is valid.
    machine.wait(MINUTE)
    assert is_fresh(machine, path)
    # It expired, but the time that the clock said at its issue is less than 8 hours ago.
    machine.wait(max(hours, 9) * HOUR)
    assert not is_fresh(machine, path)


def test_the_lifetime_does_not_depend_on_a_wrong_clock_that_nobody_sets(
    machine: Machine, tmp_path: Path
) -> None:
    for hours in (25, -25):
        machine.set_clock(hours * HOUR)
        path = issued(machine, tmp_path, HOUR)
        machine.wait(47 * MINUTE)
        assert is_fresh(machine, path)
        machine.wait(2 * MINUTE)
        assert not is_fresh(machine, path)


def test_a_reboot_ends_no_certificate(machine: Machine, tmp_path: Path) -> None:
    path = issued(machine, tmp_path, 8 * HOUR)
    machine.boot()
    assert is_fresh(machine, path)
    machine.wait(8 * HOUR)
    assert not is_fresh(machine, path)


@pytest.mark.parametrize("booted", [False, True])
def test_a_certificate_file_is_renewed_although_the_clock_was_ahead(machine: Machine, booted: bool) -> None:
    machine.set_clock(5 * HOUR)
    file = CertificateFile("default", "p", "c")
    true_now = datetime.fromtimestamp(machine.true_time, UTC)
    pem = self_signed_pem(true_now - BACKDATE, 8 * HOUR + BACKDATE)
    file.write(Credential(pem, "", 8 * HOUR, true_now + 8 * HOUR, "1:2 /login", "Default/alice"))
    os.utime(file.path, (machine.time(), machine.time()))
    assert not file.is_due(machine.now)
    machine.set_clock(timedelta(0))
    if booted:
        machine.boot()
    machine.wait(6 * HOUR)
    assert not file.is_due(machine.now)
    machine.wait(HOUR)
    assert file.is_due(machine.now)
    file.delete()
    assert list(file.path.parent.iterdir()) == []


@pytest.mark.parametrize("hours", [500 * 24, 2, -2])
def test_the_service_is_asked_about_a_request_after_the_clock_was_set(
    machine: Machine, tmp_path: Path, hours: int
) -> None:
    machine.set_clock(hours * HOUR)
    path = str(tmp_path / "entry")
    access_request.note_failure(path, RequestMark(request="1" * 32, user="Default/anna"), 10)
    mark = cache.read_mark(path)
    assert mark is not None
    assert not mark.is_due(machine.time())
    machine.set_clock(timedelta(0))
    assert mark.is_due(machine.time())


def test_a_notice_of_the_day_is_shown_again_after_the_clock_was_set(machine: Machine) -> None:
    days = [f"{machine.now + ahead:%Y-%m-%d}" for ahead in (500 * 24 * HOUR, timedelta(0))]
    assert [is_new("version", day) for day in days] == [True, True]


def test_the_boot_time_changes_only_when_the_clock_is_set_or_the_machine_boots(machine: Machine) -> None:
    saved = clock.boot_time()
    machine.wait(500 * 24 * HOUR)
    assert clock.is_unchanged_since(saved)
    machine.set_clock(59 / 60 * MINUTE)
    assert clock.is_unchanged_since(saved)
    machine.set_clock(2 * MINUTE)
    assert not clock.is_unchanged_since(saved)
    machine.set_clock(timedelta(0))
    machine.boot()
    assert not clock.is_unchanged_since(saved)
