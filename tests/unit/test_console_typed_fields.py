"""What a person typed into a form of the console, in a cookie."""

import base64

import pytest

from clustercert.http.console.forms import CSRF_FIELD
from clustercert.http.console.typed_fields import OWNER_FIELD, kept, restored

PAGE, ANNA = "/console/requests/new", "a" * 32
FIELDS = {"reason": "gr\u00fcn \u202e", CSRF_FIELD: "secret", OWNER_FIELD: ANNA}


def test_what_was_typed_is_restored_for_the_same_user_and_page() -> None:
    cookie = kept(PAGE, FIELDS)
    assert cookie is not None
    assert restored(cookie, PAGE, ANNA) == {"reason": FIELDS["reason"]}
    assert restored(cookie, f"{PAGE}?cluster=x", ANNA) == {}
    assert restored(cookie, PAGE, "b" * 32) == {}


def test_what_names_no_user_or_is_too_long_is_not_kept() -> None:
    assert kept(PAGE, {"reason": "x"}) is None
    assert kept(PAGE, FIELDS | {"reason": "x" * 3000}) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", '{"by": 1}', "[" * 2000, '{"fields": 1}', "\0"])
def test_a_malformed_cookie_counts_as_none(text: str) -> None:
    for cookie in (text, base64.urlsafe_b64encode(text.encode()).decode()):
        assert restored(cookie, PAGE, ANNA) == {}


def test_fields_that_are_no_object_count_as_none() -> None:
    content = f'{{"by": "{ANNA}", "page": "{PAGE}", "fields": [1]}}'
    assert restored(base64.urlsafe_b64encode(content.encode()).decode(), PAGE, ANNA) == {}
