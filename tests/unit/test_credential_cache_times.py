"""The times in the exec plugin's cache, and of certificate files, which follow this machine's clock."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clustercert.cli.credential.cache import login_state
from clustercert.cli.credential.certificate import Credential
from clustercert.cli.credential.certificate_files import CertificateFile, certificate_files
from clustercert.cli.credential.renewal import _RETRY_SECONDS
from clustercert.model.times import rfc3339
from clustercert.policy.lifetime import BACKDATE
from support.leaf_builder import self_signed_pem

HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)


def credential(lifetime: timedelta, login: str = "1:2 /login") -> Credential:
    return Credential("CERT", "KEY", lifetime, datetime.now(UTC) + lifetime, login, "Default/alice")


def test_a_certificate_is_renewed_when_a_fifth_of_its_lifetime_is_left() -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    entry = credential(5 * HOUR).cache_entry(now.timestamp())
    assert (entry.renew - entry.issued, entry.expires - entry.issued) == (4 * 3600, 5 * 3600)


def test_a_short_certificate_is_used_for_half_its_lifetime() -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    entry = credential(6 * MINUTE).cache_entry(now.timestamp())
    assert (entry.renew - entry.issued, entry.expires - entry.issued) == (180, 360)
    assert json.loads(entry.body)["status"]["expirationTimestamp"] == rfc3339(now + timedelta(minutes=5))


def test_a_certificate_of_5_minutes_is_renewed_in_time() -> None:
    """For an hour, kubectl runs every ten seconds, and a program like k9s asks when kubectl's expiry has passed."""
    start = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp())
    entry = credential(5 * MINUTE).cache_entry(start)
    issued, held = 1, entry
    for now in range(start, start + 3600, 10):
        if now >= entry.renew:
            entry, issued = credential(5 * MINUTE).cache_entry(now), issued + 1
        assert entry.expires - now >= 150
        told = datetime.fromisoformat(json.loads(held.body)["status"]["expirationTimestamp"])
        if now >= told.timestamp():
            # The plugin gives the program a certificate that it has renewed before.
            held = entry
        assert held.expires - now > 60
    # One for each half of a lifetime, so 1,000 users need seven a second.
    assert issued == 24


def test_a_failed_renewal_of_a_certificate_of_5_minutes_is_tried_again_while_it_is_valid() -> None:
    entry = credential(5 * MINUTE).cache_entry(0)
    tries = list(range(entry.renew, entry.expires, _RETRY_SECONDS))
    assert len(tries) == 3


def test_an_entry_from_the_future_is_not_used(tmp_path: Path) -> None:
    login = tmp_path / "login"
    login.touch()
    now = datetime.now(UTC)
    entry = credential(HOUR, login_state(str(login))).cache_entry(now.timestamp())
    assert entry.is_fresh(now.timestamp())
    assert not entry.is_fresh((now - HOUR).timestamp())
    assert not entry.is_usable((now + HOUR).timestamp())


@pytest.mark.parametrize("offset", [timedelta(0), 5 * HOUR, -5 * HOUR])
def test_a_file_is_due_by_its_age_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: timedelta
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    file, here = CertificateFile("default", "p", "c"), datetime.now(UTC)
    # The service's clock differs from this machine's clock by `offset`.
    pem = self_signed_pem(here + offset - BACKDATE, 2 * HOUR + BACKDATE)
    file.write(Credential(pem, "", 2 * HOUR, here + 2 * HOUR, "1:2 /login", "Default/alice"))
    assert not file.is_due(here)
    assert not file.is_due(here + 95 * MINUTE)
    assert file.is_due(here + 97 * MINUTE)
    # The clock was set back.
    assert file.is_due(here - 2 * MINUTE)
    os.utime(file.path, (0, 0))
    assert file.is_due(here)


@pytest.mark.parametrize(("minutes", "due"), [(5, 2.5), (15, 7.5), (20, 10), (60, 48)])
def test_a_file_with_a_short_certificate_is_not_due_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, due: float
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    file, here, lifetime = CertificateFile("default", "p", "c"), datetime.now(UTC), minutes * MINUTE
    pem = self_signed_pem(here - BACKDATE, lifetime + BACKDATE)
    file.write(Credential(pem, "", lifetime, here + lifetime, "1:2 /login", "Default/alice"))
    assert not file.is_due(here + due * MINUTE - 10 * SECOND)
    assert file.is_due(here + due * MINUTE + 10 * SECOND)


def token_credential(lifetime: timedelta, not_after: datetime) -> Credential:
    return Credential("", "", lifetime, not_after, "1:2 /login", "Default/alice", token="a.b.c")


def test_the_entry_of_a_token_has_no_certificate_and_no_question_about_a_ca() -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    entry = token_credential(20 * HOUR, now + 20 * HOUR).cache_entry(now.timestamp())
    assert json.loads(entry.body)["status"] == {
        "token": "a.b.c",
        "expirationTimestamp": rfc3339(now + 20 * HOUR - MINUTE),
    }
    assert entry.is_token
    assert not credential(HOUR).cache_entry(now.timestamp()).is_token
    assert entry.renew - entry.issued == 16 * 3600
    assert "a.b.c" not in repr(token_credential(HOUR, now))


@pytest.mark.parametrize("offset", [timedelta(0), 5 * HOUR, -5 * HOUR])
def test_a_file_with_a_token_is_due_by_the_lifetime_of_the_credential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: timedelta
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    file, here = CertificateFile("default", "p", "c", kind="token"), datetime.now(UTC)
    file.write(token_credential(5 * MINUTE, here + offset + 5 * MINUTE))
    assert file.path.read_text() == "a.b.c"
    assert not file.is_due(here + 140 * SECOND)
    assert file.is_due(here + 160 * SECOND)
    assert list(certificate_files()) == [file]
    file.delete()
    assert list(tmp_path.rglob("*.*")) == []
    assert file.is_due(here)
