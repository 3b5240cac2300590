"""Keeps what a person typed into a form in a cookie, until the person has logged in and sees the form again."""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from clustercert.http.console.forms import CSRF_FIELD

COOKIE = "__Host-clustercert-typed"
SECONDS = 600
OWNER_FIELD = "typed_by"
"""The field of a form that names the user for whom the page was made, by id."""
# Browsers accept cookies of 4,096 bytes.
_MAX_COOKIE = 3800


def kept(page: str, fields: Mapping[str, str]) -> str | None:
    """Return the value of the cookie; None if the fields name no user, or are too long for a cookie.

    `page`: the address of the page with the form.
    """
    typed = {name: value for name, value in fields.items() if name not in (CSRF_FIELD, OWNER_FIELD)}
    content = {"by": fields.get(OWNER_FIELD), "page": page, "fields": typed}
    value = base64.urlsafe_b64encode(json.dumps(content, ensure_ascii=False).encode()).decode()
    return value if content["by"] and len(value) <= _MAX_COOKIE else None


def restored(cookie: str, page: str, user_id: str) -> Mapping[str, str]:
    """Return the fields that this user typed on this page; empty if the cookie has none, or is malformed."""
    try:
        content: Any = json.loads(base64.urlsafe_b64decode(cookie.encode()))
        if (content["by"], content["page"]) != (user_id, page):
            return {}
        return {str(name): str(value) for name, value in content["fields"].items()}
    except (ValueError, binascii.Error, KeyError, TypeError, AttributeError, RecursionError):
        return {}
