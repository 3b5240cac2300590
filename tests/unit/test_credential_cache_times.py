"""The times in the exec plugin's cache, and of certificate files, which follow this machine's clock."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clustercert.cli.credential.cache import login_state
from clustercert.cli.credential.certificate_files import CertificateFile
from clustercert.cli.credential.service_requests import Credential
from clustercert.model.times import rfc3339
from clustercert.policy.lifetime import BACKDATE
from support.leaf_builder import self_signed_pem

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


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
