"""Renders the console's templates, and sets the rules that browsers enforce for its pages."""

import functools
import hashlib
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import Response

from clustercert.http.responses import NO_STORE
from clustercert.model import parse_rfc3339, utc_now
from clustercert.policy.lifetime import lifetime_text
from clustercert.requests.views import approver_words

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"
HTML = "text/html; charset=utf-8"
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_YEAR = 365 * _DAY


def browser_rules(nonce: str | None) -> tuple[tuple[bytes, bytes], ...]:
    """Return the header fields of every page of the console.

    `nonce`: the nonce of the page's script element; None for a page without a live part, which runs no script at all.
    Source: Content Security Policy Level 3; Trusted Types.
    """
    policy = (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none';"
        " frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    if nonce is not None:
        policy += f"; script-src 'nonce-{nonce}'; connect-src 'self'"
    return (
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"cross-origin-opener-policy", b"same-origin"),
        # `no-referrer` would make browsers send `Origin: null` with forms.
        (b"referrer-policy", b"same-origin"),
    )


def static_address(name: str) -> str:
    """Return the address of a static file, with the hash of its content, so that browsers can keep it for ever."""
    return f"/console/static/{name}?{_digest(name)}"


@functools.cache
def _digest(name: str) -> str:
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:16]


def _as_time(value: str | datetime) -> datetime:
    return (value if isinstance(value, datetime) else parse_rfc3339(value)).astimezone(UTC)


def _amount(seconds: float, *, is_rough: bool = False) -> str:
    """Return a duration with one unit, such as `5 min`.

    Rounds down, so that a limit is not overstated. `is_rough`: rounds hours, days and years to the nearest number.
    """
    for unit, size in (("y", _YEAR), ("d", _DAY), ("h", _HOUR), ("min", _MINUTE)):
        if seconds >= size * (2 if unit != "min" else 1):
            number = round(seconds / size) if is_rough and unit != "min" else math.floor(seconds / size)
            return f"{number} {unit}"
    return f"{max(0, math.floor(seconds))} s"


def relative(value: str | datetime, now: datetime | None = None) -> str:
    """Return how far a time is away: `in 5 min`, `3 h ago`, or `now`. `value`: RFC 3339 if it is a string."""
    seconds = (_as_time(value) - (now or utc_now())).total_seconds()
    if abs(seconds) < 1:
        return "now"
    amount = _amount(abs(seconds), is_rough=True)
    return f"in {amount}" if seconds > 0 else f"{amount} ago"


def absolute(value: str | datetime) -> str:
    """Return a time as `2026-11-29 20:43:50 UTC`. `value`: RFC 3339 if it is a string."""
    return f"{_as_time(value):%Y-%m-%d %H:%M:%S} UTC"


def duration(seconds: float | timedelta) -> str:
    """Return a duration as `1 h` or `90 min`. `seconds`: a number of seconds, or a timedelta."""
    total = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
    return "1 h" if total == _HOUR else _amount(total)


def lifetime(seconds: int) -> str:
    """Return a lifetime in full, such as `1 hour` or `59 minutes 17 seconds`."""
    return lifetime_text(timedelta(seconds=seconds))


def grouped(number: int) -> str:
    """Return a number with thin spaces between thousands: `10 000`."""
    return f"{number:,}".replace(",", "\u202f")


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "relative": relative,
        "absolute": absolute,
        "duration": duration,
        "grouped": grouped,
        "lifetime": lifetime,
        "approver": approver_words,
    }
    environment.globals["static"] = static_address
    return environment


def rendered(template: str, values: Mapping[str, Any]) -> str:
    return _environment().get_template(template).render(values)


def page_response(
    template: str, values: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a page that no cache may keep."""
    return Response(rendered(template, values), status, NO_STORE | dict(headers or {}), HTML)
