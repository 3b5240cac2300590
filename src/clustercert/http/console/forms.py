"""Requests that change something: form fields, and the proof that a page of this console sent the form."""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl

from fastapi import Request

from clustercert.http.body import received
from clustercert.http.dependencies import Services, base_url
from clustercert.model.errors import Forbidden, InvalidRequest, UnsupportedMedia

# A reason of 512 characters takes up to 6 KiB in a form, and a login less than 4 KiB.
MAX_FORM = 8 * 1024
MAX_FIELDS = 200
CSRF_FIELD = "csrf"
_FORM = "application/x-www-form-urlencoded"


def csrf_token(cookie: str) -> str:
    """Return the token that every form of a session contains. Computing the token needs the session's cookie."""
    return hmac.new(cookie.encode(), b"clustercert console form", hashlib.sha256).hexdigest()


async def received_form(request: Request, services: Services, limit: int) -> Mapping[str, str]:
    """Return the fields of a form of at most `limit` bytes. Of a repeated field, the last value counts.

    Raises InvalidRequest, UnsupportedMedia, TooLarge or RequestTimeout.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != _FORM:
        raise UnsupportedMedia(f"Content type not supported. Send {_FORM}.")
    body = await received(request, services.options.body_timeout, limit)
    try:
        fields = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS
        )
    except ValueError as error:
        raise InvalidRequest(
            f"The form is malformed, or has more than {MAX_FIELDS} fields. Send the form again."
        ) from error
    return dict(fields)


def require_own_page(request: Request, urls: Iterable[str]) -> None:
    """Raise Forbidden unless a page of this service sent the request. `urls`: the addresses of this service.

    Browsers send Sec-Fetch-Site since 2023; older browsers send Origin with every POST. Source: Fetch Metadata Request
    Headers; RFC 6454, section 7.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        allowed = site == "same-origin"
    else:
        origin = request.headers.get("origin")
        allowed = origin is not None and origin in {*urls, base_url(request)}
    if not allowed:
        raise Forbidden(
            "This form was not sent by a page of the console. Open the console, and try again in the console."
        )


def require_csrf_token(fields: Mapping[str, str], cookie: str) -> None:
    """Raise Forbidden unless the form contains the session's token."""
    if not hmac.compare_digest(fields.get(CSRF_FIELD, "").encode(), csrf_token(cookie).encode()):
        raise Forbidden(
            "This form belongs to another session. Open the page again, and send the form from this page."
        )
