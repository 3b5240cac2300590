"""Requests to POST clustercert and expected responses, for each row of the table in the documentation."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

OK, BAD, TYPE, LARGE = (200, ""), (400, "CCE.01400001"), (400, "CCE.01400006"), (413, "APIGW.0201")
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

ROWS = DURATIONS + EXPIRY + BODIES + CONTENT_TYPES
