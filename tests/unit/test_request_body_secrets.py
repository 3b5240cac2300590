"""No password or token from a request body gets into an error, its traceback or a representation."""

import json
import traceback
from typing import Any

import pytest

from clustercert.http.body import parsed
from clustercert.http.keystone.bodies import TemporaryKeyRequest, TokenRequest
from clustercert.model.errors import InvalidRequest

SECRET = "hunter2-hunter2"
USER = {"name": "alice", "domain": {"name": "acme"}, "password": SECRET}


def by_password(user: object, **more: object) -> dict[str, Any]:
    return {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, **more}}


def by_token(token: object, **more: object) -> dict[str, Any]:
    return {"auth": {"identity": {"methods": ["token"], "token": token}, **more}}


INVALID: dict[str, dict[str, Any]] = {
    "secret in another field": by_password(USER | {"domain": SECRET}),
    "secret as name": by_password({"name": [SECRET], "domain": {"name": "acme"}, "password": SECRET}),
    "secret of another type": by_password(USER | {"password": [SECRET]}),
    "no user": by_password(SECRET),
    "secret as method": {"auth": {"identity": {"methods": [SECRET]}}},
    "secret as scope": by_password(USER, scope=SECRET),
    "secret in the scope": by_password(USER, scope={"project": {"id": [SECRET]}}),
    "secret in another object": {"auth": SECRET},
    "token of another type": by_token({"id": [SECRET]}),
    "token as text": by_token(SECRET),
}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *((name, TokenRequest) for name in INVALID),
        *((name, TemporaryKeyRequest) for name in INVALID if name.startswith("token")),
    ],
)
def test_no_secret_is_in_the_traceback_of_an_invalid_body(
    name: str, shape: type[TokenRequest | TemporaryKeyRequest]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parsed(json.dumps(INVALID[name]).encode(), shape)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in caught.value.message


@pytest.mark.parametrize("text", ['{"auth": "%s"', '{"auth": "%s\\x"}', '{"%s": 1, "%s": 2}'])
def test_no_secret_is_in_the_traceback_of_invalid_json(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parsed(text.replace("%s", SECRET).encode(), TokenRequest)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_representations_of_bodies_have_no_secret() -> None:
    for body in (
        by_password(USER),
        by_password({"id": "a" * 32, "password": SECRET}),
        by_token({"id": SECRET}),
    ):
        request = parsed(json.dumps(body).encode(), TokenRequest)
        assert SECRET not in f"{request!r}{request}{request.proof()!r}"
    request_for_key = parsed(json.dumps(by_token({"id": SECRET})).encode(), TemporaryKeyRequest)
    assert SECRET not in f"{request_for_key!r}{request_for_key}"
