import gzip
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest

from support.leaf_checks import BACKDATE, leaf_of
from support.service import Service
from support.world import World

OK, BAD, TYPE, LARGE = (200, ""), (400, "CCE.01400001"), (400, "CCE.01400006"), (413, "APIGW.0201")
CODED = (415, "APIGW.0201")
JSON = "application/json"
LIMIT = 64 * 1024


def ahead(**lifetime: float) -> str:
    """A time from now in the format of the API."""
    return f"{datetime.now(UTC) + timedelta(**lifetime):%Y-%m-%d %H:%M:%S} +0000 UTC"


@dataclass(frozen=True)
class Row:
    """A request and its answer.

    Attributes:
        request: what is special about it.
        group: the row of the documentation's table that it stands for.
        answer: status and code.
        body: what is sent; made when it is sent, since some of it is a time.
        lifetime: what the certificate's end is from its issue, where one is issued.
        says: words of the message.
    """

    request: str
    answer: tuple[int, str]
    group: str
    body: Callable[[], str | bytes]
    content_type: str | None = JSON
    content_encoding: str | None = None
    lifetime: timedelta | None = None
    says: str = ""


def _fixed(body: str | bytes) -> Callable[[], str | bytes]:
    return lambda: body


def _days(number: int) -> timedelta:
    return timedelta(days=number)


# The rows of the documentation's table, by what stands in their first cell.
DURATION = "`duration` 1 to 1825"
LONGEST = "`duration` -1"
OUT_OF_RANGE = "`duration` 0, -2, 1826"
NOT_AN_INTEGER = '`duration` `"30"`, `30.5`, `30.0`, `3e1`, `true`'
NULL = "`duration` null, `expire_at` null"
NEITHER = "neither `duration` nor `expire_at`"
EXPIRE_AT = "`expire_at` 15 minutes to 5 years (1825 days) ahead"
BOTH = "`expire_at` and `duration`"
BOTH_ONE_WRONG = "valid `expire_at`, `duration` out of range or of another type"
OUT_OF_BOUNDS = "`expire_at` past, nearer than 15 minutes, further than 1825 days"
ANOTHER_FORM = "`expire_at` in another format"
TOO_LONG = "longer than the policy's or the CA's limit"
UNKNOWN = "unknown fields"
NOTHING_SAID = "empty body, `{}`"
NOT_JSON = (
    "not JSON, a JSON array, NaN or Infinity, a name twice, nested too deeply, not UTF-8, a byte order mark"
)
CONTENT_TYPE = (
    "Content-Type missing, given twice, or other than `application/json`, `application/json;charset=utf-8`"
)
TOO_LARGE = "body over 64 KiB"
CONTENT_ENCODING = "`Content-Encoding` other than `identity`"
NO_CREDENTIAL = "any of these without a valid credential"

DURATIONS = (
    Row('`{"duration": 1}`', OK, DURATION, _fixed('{"duration": 1}'), lifetime=_days(1)),
    Row('`{"duration": 30}`', OK, DURATION, _fixed('{"duration": 30}'), lifetime=_days(30)),
    Row('`{"duration": 1825}`', OK, DURATION, _fixed('{"duration": 1825}'), lifetime=_days(1825)),
    Row(
        '`{"duration": -1}`',
        OK,
        LONGEST,
        _fixed('{"duration": -1}'),
        lifetime=_days(1825),
    ),
    Row('`{"duration": 0}`', BAD, OUT_OF_RANGE, _fixed('{"duration": 0}'), says="duration"),
    Row('`{"duration": -2}`', BAD, OUT_OF_RANGE, _fixed('{"duration": -2}'), says="duration"),
    Row('`{"duration": 1826}`', BAD, OUT_OF_RANGE, _fixed('{"duration": 1826}'), says="1825"),
    Row('`{"duration": 1000000000000000000000}`', BAD, OUT_OF_RANGE, _fixed(f'{{"duration": {10**21}}}')),
    Row("`duration` of 5000 digits", BAD, OUT_OF_RANGE, _fixed(f'{{"duration": {"9" * 5000}}}')),
    Row('`{"duration": "30"}`', BAD, NOT_AN_INTEGER, _fixed('{"duration": "30"}'), says="duration"),
    Row('`{"duration": 30.5}`', BAD, NOT_AN_INTEGER, _fixed('{"duration": 30.5}'), says="duration"),
    Row('`{"duration": 30.0}`', BAD, NOT_AN_INTEGER, _fixed('{"duration": 30.0}'), says="duration"),
    Row('`{"duration": 1e2}`', BAD, NOT_AN_INTEGER, _fixed('{"duration": 1e2}'), says="duration"),
    Row('`{"duration": -0}`', BAD, OUT_OF_RANGE, _fixed('{"duration": -0}'), says="duration"),
    Row('`{"duration": true}`', BAD, NOT_AN_INTEGER, _fixed('{"duration": true}'), says="duration"),
    Row('`{"duration": [30]}`', BAD, NOT_AN_INTEGER, _fixed('{"duration": [30]}'), says="duration"),
    Row('`{"duration": {}}`', BAD, NOT_AN_INTEGER, _fixed('{"duration": {}}'), says="duration"),
    Row('`{"duration": null}`', BAD, NULL, _fixed('{"duration": null}')),
    Row("`{}`", BAD, NOTHING_SAID, _fixed("{}"), says="duration"),
    Row('`{"Duration": 30}`', BAD, NEITHER, _fixed('{"Duration": 30}')),
    Row(
        '`{"duration": 30, "expiry": 7, "spec": {}}`',
        OK,
        UNKNOWN,
        _fixed('{"duration": 30, "expiry": 7, "spec": {}}'),
        lifetime=_days(30),
    ),
)

EXPIRY = (
    Row(
        "`expire_at` 8 hours ahead",
        OK,
        EXPIRE_AT,
        lambda: f'{{"expire_at": "{ahead(hours=8)}"}}',
        lifetime=timedelta(hours=8),
    ),
    Row(
        "`expire_at` 8 hours ahead and `duration` 30",
        OK,
        BOTH,
        lambda: f'{{"duration": 30, "expire_at": "{ahead(hours=8)}"}}',
        lifetime=timedelta(hours=8),
    ),
    Row(
        "`expire_at` 8 hours ahead and `duration` null",
        OK,
        NULL,
        lambda: f'{{"duration": null, "expire_at": "{ahead(hours=8)}"}}',
        lifetime=timedelta(hours=8),
    ),
    Row(
        "`duration` 30 and `expire_at` null",
        OK,
        NULL,
        _fixed('{"duration": 30, "expire_at": null}'),
        lifetime=_days(30),
    ),
    Row(
        "`expire_at` 8 hours ahead and `duration` 0",
        BAD,
        BOTH_ONE_WRONG,
        lambda: f'{{"duration": 0, "expire_at": "{ahead(hours=8)}"}}',
        says="duration",
    ),
    Row(
        '`expire_at` 8 hours ahead and `duration` "30"',
        BAD,
        BOTH_ONE_WRONG,
        lambda: f'{{"duration": "30", "expire_at": "{ahead(hours=8)}"}}',
        says="duration",
    ),
    Row(
        "`duration` 30 and an `expire_at` of another form",
        BAD,
        ANOTHER_FORM,
        _fixed('{"duration": 30, "expire_at": "tomorrow"}'),
        says="expire_at",
    ),
    Row('`{"expire_at": null}`', BAD, NULL, _fixed('{"expire_at": null}')),
    Row(
        "`expire_at` a minute ago",
        BAD,
        OUT_OF_BOUNDS,
        lambda: f'{{"expire_at": "{ahead(minutes=-1)}"}}',
        says="expire_at",
    ),
    Row(
        "`expire_at` 14 minutes ahead",
        BAD,
        OUT_OF_BOUNDS,
        lambda: f'{{"expire_at": "{ahead(minutes=14)}"}}',
        says="expire_at",
    ),
    Row(
        "`expire_at` 1826 days ahead",
        BAD,
        OUT_OF_BOUNDS,
        lambda: f'{{"expire_at": "{ahead(days=1826)}"}}',
        says="expire_at",
    ),
    Row(
        "`expire_at` in the year 9999",
        BAD,
        OUT_OF_BOUNDS,
        _fixed('{"expire_at": "9999-12-31 23:59:59 +0000 UTC"}'),
    ),
    *(
        Row(
            f'`expire_at` "{text}"',
            BAD,
            ANOTHER_FORM,
            _fixed(f'{{"expire_at": "{text}"}}'),
            says="expire_at",
        )
        for text in (
            "2027-01-01T16:00:00Z",
            "2027-01-01 16:00:00",
            "2027-01-01 16:00:00 UTC",
            "2027-01-01 17:00:00 +0100 CET",
            "2027-01-01 16:00:00.5 +0000 UTC",
            "2027-1-1 16:00:00 +0000 UTC",
            " 2027-01-01 16:00:00 +0000 UTC",
            "2027-02-30 16:00:00 +0000 UTC",
            "2027-01-01 24:00:00 +0000 UTC",
            "0000-01-01 00:00:00 +0000 UTC",
            "12027-01-01 00:00:00 +0000 UTC",
            "8h",
            "",
        )
    ),
    Row(
        "`expire_at` in digits of another script",
        BAD,
        ANOTHER_FORM,
        _fixed('{"expire_at": "\\uff12\\uff10\\uff12\\uff17-01-01 16:00:00 +0000 UTC"}'),
        says="expire_at",
    ),
    Row("`expire_at` a number", BAD, ANOTHER_FORM, _fixed('{"expire_at": 1798761600}'), says="expire_at"),
)

BODIES = (
    Row("an empty body", BAD, NOTHING_SAID, _fixed(""), says="empty"),
    Row("white space", BAD, NOTHING_SAID, _fixed(" \n\t ")),
    Row(
        "a line feed after the object",
        OK,
        DURATION,
        _fixed('{"duration": 30}\n'),
        lifetime=_days(30),
    ),
    Row("text that isn't JSON", BAD, NOT_JSON, _fixed("duration=30")),
    Row("JSON with single quotes", BAD, NOT_JSON, _fixed("{'duration': 30}")),
    Row("JSON with a comma too much", BAD, NOT_JSON, _fixed('{"duration": 30,}')),
    Row("JSON cut short", BAD, NOT_JSON, _fixed('{"duration": 30')),
    Row("two JSON objects", BAD, NOT_JSON, _fixed('{"duration": 30}{"duration": 30}')),
    Row("a JSON array", BAD, NOT_JSON, _fixed('[{"duration": 30}]'), says="object"),
    Row("a JSON string", BAD, NOT_JSON, _fixed('"30"'), says="object"),
    Row("a JSON number", BAD, NOT_JSON, _fixed("30"), says="object"),
    Row("JSON null", BAD, NOT_JSON, _fixed("null"), says="object"),
    Row(
        '`{"duration": 1, "duration": 30}`',
        BAD,
        NOT_JSON,
        _fixed('{"duration": 1, "duration": 30}'),
        says="duplicate key",
    ),
    Row(
        "the same name twice with the same value",
        BAD,
        NOT_JSON,
        _fixed('{"duration": 30, "duration": 30}'),
        says="duplicate key",
    ),
    Row(
        "the same name twice, once escaped",
        BAD,
        NOT_JSON,
        _fixed('{"duration": 30, "\\u0064uration": 1}'),
        says="duplicate key",
    ),
    Row(
        "the same name twice inside an unknown field",
        BAD,
        NOT_JSON,
        _fixed('{"duration": 30, "x": {"a": 1, "a": 2}}'),
        says="duplicate key",
    ),
    Row("`NaN`", BAD, NOT_JSON, _fixed('{"duration": NaN}')),
    Row("`NaN` in an unknown field", BAD, NOT_JSON, _fixed('{"duration": 30, "x": NaN}')),
    Row("`Infinity`", BAD, NOT_JSON, _fixed('{"duration": Infinity}')),
    Row("`-Infinity`", BAD, NOT_JSON, _fixed('{"duration": -Infinity}')),
    Row(
        "30000 nested arrays in an unknown field",
        BAD,
        NOT_JSON,
        _fixed('{"duration": 30, "x": ' + "[" * 30_000 + "]" * 30_000 + "}"),
        says="nested",
    ),
    Row(
        "10000 nested objects",
        BAD,
        NOT_JSON,
        _fixed('{"a":' * 10_000 + "1" + "}" * 10_000),
        says="nested",
    ),
    Row("a byte order mark", BAD, NOT_JSON, _fixed(b"\xef\xbb\xbf" + b'{"duration": 30}')),
    Row("UTF-16", BAD, NOT_JSON, _fixed('{"duration": 30}'.encode("utf-16"))),
    Row("UTF-16 without a byte order mark", BAD, NOT_JSON, _fixed('{"duration": 30}'.encode("utf-16-le"))),
    Row("UTF-32", BAD, NOT_JSON, _fixed('{"duration": 30}'.encode("utf-32"))),
    Row("Latin-1", BAD, NOT_JSON, _fixed('{"duration": 30, "reason": "Größe"}'.encode("latin-1"))),
    Row(
        "64 KiB to the byte",
        OK,
        DURATION,
        _fixed('{"duration": 30}'.ljust(LIMIT)),
        lifetime=_days(30),
    ),
    Row(
        "a byte over 64 KiB",
        LARGE,
        TOO_LARGE,
        _fixed('{"duration": 30}'.ljust(LIMIT + 1)),
    ),
    Row("a byte over 64 KiB that isn't JSON", LARGE, TOO_LARGE, _fixed("x" * (LIMIT + 1))),
)

CONTENT_TYPES = (
    *(
        Row(
            f"`Content-Type: {accepted}`",
            OK,
            DURATION,
            _fixed('{"duration": 30}'),
            accepted,
            lifetime=_days(30),
        )
        for accepted in (
            "application/json;charset=utf-8",
            "application/json; charset=utf-8",
            "application/json; charset=UTF-8",
            'application/json; charset="utf-8"',
            "Application/JSON",
        )
    ),
    Row("no `Content-Type`", TYPE, CONTENT_TYPE, _fixed('{"duration": 30}'), None),
    *(
        Row(f"`Content-Type: {refused}`", TYPE, CONTENT_TYPE, _fixed('{"duration": 30}'), refused)
        for refused in (
            "text/plain",
            "text/json",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/yaml",
            "application/json-patch+json",
            "application/jsonx",
            "application/json; charset=iso-8859-1",
            "application/json; charset=utf-16",
            "application/json, text/plain",
            "json",
        )
    ),
    Row(
        "another `Content-Type` and no JSON",
        TYPE,
        CONTENT_TYPE,
        _fixed("duration=30"),
        "text/plain",
    ),
)

CONTENT_ENCODINGS = (
    Row(
        "`Content-Encoding: identity`",
        OK,
        DURATION,
        _fixed('{"duration": 30}'),
        content_encoding="Identity",
        lifetime=_days(30),
    ),
    *(
        Row(
            f"`Content-Encoding: {refused}`",
            CODED,
            CONTENT_ENCODING,
            _fixed(gzip.compress(b'{"duration": 30}')),
            content_encoding=refused,
            says="Send the body without this header.",
        )
        for refused in ("gzip", "deflate", "br", "zstd", "identity, gzip", "GZIP")
    ),
)

ROWS = DURATIONS + EXPIRY + BODIES + CONTENT_TYPES + CONTENT_ENCODINGS

OTHER_CLOUDS = "`duration` 1826, 1827 with `api.max_duration = 1827`"
DOCUMENT = Path(__file__).parents[2] / "docs" / "cce-divergences.md"


def send(client: httpx2.Client, world: World, row: Row, headers: dict[str, str]) -> httpx2.Response:
    if row.content_type is not None:
        headers = headers | {"Content-Type": row.content_type}
    if row.content_encoding is not None:
        headers = headers | {"Content-Encoding": row.content_encoding}
    body = row.body()
    content = body.encode() if isinstance(body, str) else body
    return client.post(world.path(), content=content, headers=headers)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.request)
def test_a_request_is_answered_as_the_table_says(client: httpx2.Client, world: World, row: Row) -> None:
    begun = datetime.now(UTC)
    response = send(client, world, row, world.people["admin"].headers)
    took = (datetime.now(UTC) - begun).total_seconds()
    status, code = row.answer
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    if row.lifetime is None:
        assert response.json()["errorCode"] == code
        assert row.says in response.json()["errorMessage"]
        # RFC 9110, section 15.5.16.
        assert response.headers.get("accept-encoding") == ("identity" if status == 415 else None)
        return
    leaf = leaf_of(response.json())
    issued_at = leaf.not_valid_before_utc + BACKDATE
    # The test computed expire_at from the second in which it sent the request.
    late = (issued_at + row.lifetime - leaf.not_valid_after_utc).total_seconds()
    assert 0 <= late <= (took + 1 if "expire_at" in row.request else 0)
    assert response.headers["X-Clustercert-Not-After"] == f"{leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.request)
def test_without_a_valid_credential_only_size_and_content_coding_are_judged(
    client: httpx2.Client, world: World, row: Row
) -> None:
    status, code = row.answer if row.answer[0] in {413, 415} else (401, "CCE.01401001")
    for headers in ({}, {"X-Auth-Token": "A" * 43}):
        response = send(client, world, row, headers)
        assert (response.status_code, response.json()["errorCode"]) == (status, code)


def test_expire_at_is_the_end_to_the_second(client: httpx2.Client, world: World) -> None:
    end = datetime.fromisoformat("2029-02-28 23:59:59+00:00")
    body = {"expire_at": f"{end:%Y-%m-%d %H:%M:%S} +0000 UTC"}
    response = client.post(world.path(), json=body, headers=world.people["admin"].headers)
    assert leaf_of(response.json()).not_valid_after_utc == end


def test_two_content_types_are_refused(service: Service, world: World) -> None:
    """It is not clear which one applies."""
    headers = [
        (b"x-auth-token", world.people["admin"].token.encode()),
        (b"content-type", b"application/json"),
        (b"content-type", b"application/json"),
    ]
    response = service.send_raw("POST", world.path(), headers, [b'{"duration": 30}'])
    assert (response.status_code, response.json()["errorCode"]) == (400, "CCE.01400006")


def documented() -> dict[str, str]:
    """Return the first two cells of each row in the documented table."""
    text = DOCUMENT.read_text(encoding="utf-8")
    section = text.split("## Requests to POST clustercert")[1].split("\n## ")[0]
    cells = [re.split(r" \| ", line.strip("| ")) for line in section.splitlines() if line.startswith("| ")]
    return {request: answer for request, answer, *_ in cells[2:]}


def test_the_document_and_the_table_have_the_same_rows() -> None:
    assert len({row.request for row in ROWS}) == len(ROWS)
    # These three have their own tests: above, in test_limits.py, and below.
    groups = {row.group for row in ROWS} | {NO_CREDENTIAL, TOO_LONG, OTHER_CLOUDS}
    assert set(documented()) == groups


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.request)
def test_the_document_gives_the_answer_that_is_tested(row: Row) -> None:
    answer = documented()[row.group]
    if answer[:3].isdecimal() and row.answer[0] != 200:
        assert answer.startswith(" ".join(map(str, row.answer)))
    elif answer[:3].isdecimal():
        assert answer.startswith("200")


@pytest.mark.parametrize("days", [1826, 1827])
def test_longer_durations_need_a_setting_and_a_rule(
    service_with: Callable[..., Service], world: World, days: int
) -> None:
    rule: dict[str, object] = {
        "name": "admin",
        "when": {"roles": ["admin"]},
        "grant": {"groups": ["clustercert:admins"]},
    }

    def post(days: int, **changed: object) -> httpx2.Response:
        client = service_with(api={"max_duration": 1827}, **changed).client
        return client.post(world.path(), json={"duration": days}, headers=world.people["admin"].headers)

    long_rule = {"rules": [rule], "max_lifetime": "1827d"}
    leaf = leaf_of(post(days, policy=long_rule).json())
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc - BACKDATE == timedelta(days=days)
    assert post(days, policy={"rules": [rule]}).status_code == 403
    refused = post(1828, policy=long_rule)
    assert (refused.status_code, refused.json()["errorCode"]) == (400, "CCE.01400001")
    assert "1827" in refused.json()["errorMessage"]
