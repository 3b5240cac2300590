"""How the administration API describes itself in the OpenAPI document."""

from typing import Any

from pydantic import BaseModel

from clustercert.http.openapi import ERRORS, described

_ERRORS = ERRORS | {404: "There is no such object, or it is out of the caller's reach."}
_CHANGE_ERRORS = _ERRORS | {
    409: "Other objects depend on it, or another request changes it now.",
    412: "It is not in the state that If-Match or If-None-Match requires.",
}
_ETAG = {"ETag": "Its state, for If-Match."}

Described = dict[int | str, dict[str, Any]]


def listed(model: type[BaseModel]) -> Described:
    return described("A page of the list.", model, errors=_ERRORS)


def one(model: type[BaseModel]) -> Described:
    return described("The object.", model, headers=_ETAG, errors=_ERRORS)


def replaced(model: type[BaseModel]) -> Described:
    """Describe the responses of a PUT that creates or replaces an object."""
    created = described("Created.", model, status=201, headers=_ETAG, errors={})
    return (
        described("Changed, or already in this state.", model, headers=_ETAG, errors=_CHANGE_ERRORS) | created
    )


def issued(model: type[BaseModel]) -> Described:
    """Describe a POST that creates a secret."""
    text = "Created. The secret is in this response only. On a dry run there is none."
    return described(text, model, status=201, errors=_CHANGE_ERRORS)


def deleted() -> Described:
    return done("Deleted.")


def done(text: str) -> Described:
    """Describe a response without a body."""
    return described(text, status=204, errors=_CHANGE_ERRORS)
