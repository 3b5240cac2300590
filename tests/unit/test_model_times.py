"""Times as text."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from clustercert.model import new_cluster_id, new_id, parse_rfc3339, rfc3339


def test_a_time_is_written_in_utc_without_fractions() -> None:
    time = datetime(2027, 1, 31, 19, 0, 0, 999_999, tzinfo=timezone(timedelta(hours=1)))
    assert rfc3339(time) == "2027-01-31T18:00:00Z"
    assert rfc3339(datetime(1, 1, 1, tzinfo=UTC)) == "0001-01-01T00:00:00Z"


@pytest.mark.parametrize("text", ["2027-01-31T18:00:00Z", "2027-01-31T19:00:00+01:00"])
def test_a_time_is_read_in_utc(text: str) -> None:
    time = parse_rfc3339(text)
    assert (time, time.tzinfo) == (datetime(2027, 1, 31, 18, tzinfo=UTC), UTC)


@pytest.mark.parametrize("text", ["2027-01-31T18:00:00", "soon", "0001-01-01T00:00:00+01:00"])
def test_a_time_without_an_offset_or_an_equivalent_in_utc_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"offset|isoformat|UTC"):
        parse_rfc3339(text)


def test_ids_have_the_forms_that_clients_check() -> None:
    assert len(bytes.fromhex(new_id())) == 16
    assert [len(part) for part in new_cluster_id().split("-")] == [8, 4, 4, 4, 12]
