"""The exec plugin's mark of an access request: when the cache is used without asking the service."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.cli.credential import access_request, cache
from clustercert.cli.credential.access_request import RequestState
from clustercert.cli.credential.cache import CachedCredential, RequestMark
from clustercert.model.ids import new_id
from clustercert.model.times import rfc3339

NOW = 1_800_000_000.0
ANNA, BERT = "Default/anna", "Default/bert"
REQUEST, OTHER = "1" * 32, "2" * 32


def entry(request: str = "", user: str = ANNA) -> CachedCredential:
    times = {"issued": int(NOW), "renew": int(NOW) + 60, "expires": int(NOW) + 120}
    times |= {"not_after": times["expires"], "boot_time": int(NOW) - 1000}
    return CachedCredential(**times, user=user, access_request=request, login="1:2 /login", body="{}\n")


def written(folder: Path, mark: RequestMark) -> str:
    path = str(folder / "entry")
    file = Path(cache.mark_path(path))
    file.touch(mode=0o600)
    file.write_text(cache.rendered_mark(mark))
    return path


def test_without_a_mark_only_a_certificate_with_a_request_is_asked_about(tmp_path: Path) -> None:
    path = str(tmp_path / "entry")
    assert cache.is_settled(path, entry(), NOW)
    assert not cache.is_settled(path, entry(REQUEST), NOW)


@pytest.mark.parametrize(
    ("is_usable", "carried", "settled"),
    [
        (False, "", True),
        (True, REQUEST, True),
        (True, "", False),
        (False, REQUEST, False),
        (True, OTHER, False),
    ],
)
@pytest.mark.parametrize(("seconds", "is_due"), [(2, False), (0, True), (-1, True), (3600, True)])
def test_after_a_question_the_cache_is_used_for_two_seconds(
    tmp_path: Path, is_usable: bool, carried: str, settled: bool, seconds: int, is_due: bool
) -> None:
    """A time far in the future means that the clock was set back."""
    path = written(
        tmp_path, RequestMark(request=REQUEST, user=ANNA, ask_at=NOW + seconds, is_usable=is_usable)
    )
    assert cache.is_settled(path, entry(carried), NOW) is (settled and not is_due)


def test_a_mark_of_another_user_changes_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, RequestMark(request=REQUEST, user=BERT))
    assert cache.is_settled(path, entry(), NOW)
    assert access_request.mark_of(path, entry(), ANNA) is None
    found = access_request.mark_of(path, entry(OTHER), ANNA)
    assert found is not None
    assert (found.request, found.is_due(NOW)) == (OTHER, True)


@given(user=st.text(max_size=80).filter(lambda text: text.isprintable()), usable=st.booleans())
def test_a_mark_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, user: str, usable: bool
) -> None:
    mark = RequestMark(request=new_id(), user=user, ask_at=NOW + 0.125, is_usable=usable)
    found = cache.read_mark(written(tmp_path_factory.mktemp("mark"), mark))
    assert found is not None
    assert [getattr(found, name) for name in RequestMark.__slots__] == [
        getattr(mark, name) for name in RequestMark.__slots__
    ]


@pytest.mark.parametrize(
    "content", ["", "clustercert-request-1 x usable 1 61", "other 1 usable 1 61", "\xff"]
)
def test_a_damaged_mark_is_no_mark(tmp_path: Path, content: str) -> None:
    path = written(tmp_path, RequestMark(request=REQUEST, user=ANNA))
    Path(cache.mark_path(path)).write_text(content, encoding="latin-1")
    assert cache.read_mark(path) is None


def test_a_mark_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    path = written(tmp_path, RequestMark(request=REQUEST, user=ANNA))
    Path(cache.mark_path(path)).chmod(0o644)
    assert cache.read_mark(path) is None


def test_the_plugin_prints_what_the_service_says_about_a_request() -> None:
    due_at = datetime(2026, 3, 14, 15, tzinfo=UTC)
    sent = {"usable": True, "due_at": rfc3339(due_at), "next": "The access is in use."}
    assert RequestState.parse(sent) == RequestState(True, due_at, "The access is in use.")
    closed = RequestState.parse({"usable": False, "due_at": None, "next": "The access is over."})
    assert closed == RequestState(False, None, "The access is over.")
