"""What an invalid field of a request body is answered: plain words, without names of Python's types or our classes."""

from typing import Annotated, Any

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from clustercert.http.administration.changes import ResourceBody
from clustercert.http.body import RequestBody, parsed
from clustercert.http.cce.clustercert import ClusterCertRequest
from clustercert.http.keystone.bodies import TemporaryKeyRequest, TokenRequest
from clustercert.http.query import invalid_parameter
from clustercert.model.errors import InvalidRequest

WHOLE = "duration: must be a whole number, without quotes or a decimal point."


def _by_password(user: str) -> str:
    return f'{{"auth": {{"identity": {{"methods": ["password"], "password": {{"user": {user}}}}}}}}}'


def _scoped(scope: str) -> str:
    identity = '{"methods": ["token"], "token": {"id": "a"}}'
    return f'{{"auth": {{"identity": {identity}, "scope": {scope}}}}}'


@pytest.mark.parametrize(
    ("shape", "body", "message"),
    [
        (ClusterCertRequest, '{"duration": "30"}', WHOLE),
        (ClusterCertRequest, '{"duration": 30.0}', WHOLE),
        (ClusterCertRequest, '{"duration": true}', WHOLE),
        (ClusterCertRequest, '{"duration": 1, "reason": 2}', "reason: must be a string."),
        (TokenRequest, "{}", "auth: this field is required."),
        (TokenRequest, '{"auth": 5}', "auth: must be a JSON object."),
        (TokenRequest, '{"auth": []}', "auth: must be a JSON object."),
        (
            TemporaryKeyRequest,
            '{"auth": {"identity": {"methods": 1}}}',
            "auth.identity.methods: must be an array.",
        ),
        (
            TokenRequest,
            _by_password('{"name": "a"}'),
            "auth.identity.password.user.domain: this field is required.",
        ),
        (
            TokenRequest,
            _by_password('{"name": "a", "domain": {}}'),
            "auth.identity.password.user.domain.name: this field is required.",
        ),
        (TokenRequest, _by_password('{"id": 5}'), "auth.identity.password.user.id: must be a string."),
        (TokenRequest, _by_password('"a"'), "auth.identity.password.user: must be a JSON object."),
        (TokenRequest, _scoped('{"project": {}}'), "auth.scope.project.name: this field is required."),
        (
            TokenRequest,
            _scoped('{"project": {"id": "a"}, "domain": {"id": "b"}}'),
            "auth.scope.domain: leave this field out.",
        ),
        (
            TemporaryKeyRequest,
            '{"auth": {"identity": {"methods": []}}}',
            "auth.identity.methods: must have at least 1 item.",
        ),
        (
            TemporaryKeyRequest,
            '{"auth": {"identity": {"methods": ["password"]}}}',
            "auth.identity.methods.0: must be 'token'.",
        ),
        *(
            (
                TemporaryKeyRequest,
                f'{{"auth": {{"identity": {{"methods": ["token"], "token": {{"duration_seconds": {sent}}}}}}}}}',
                f"auth.identity.token.duration_{WHOLE.replace('duration', 'seconds')}",
            )
            for sent in ('"x"', "1.5", "true", '"1234567"')
        ),
        (ResourceBody, r'{"\ud800": 1}', "The body must be valid Unicode text."),
    ],
)
def test_an_invalid_field_is_named_in_plain_words(
    shape: type[RequestBody | ResourceBody], body: str, message: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parsed(body.encode(), shape)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("of_type", "message"),
    [
        (bool, "sent: must be true or false."),
        (Annotated[str, Field(max_length=3)], "sent: must have at most 3 characters."),
    ],
)
def test_an_invalid_parameter_is_named_in_plain_words(of_type: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(of_type).validate_python("long")
    [problem] = caught.value.errors()
    assert invalid_parameter([{**problem, "loc": ("query", "sent")}]).message == message
