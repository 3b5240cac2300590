"""What an invalid field of a request body is answered: plain words, without names of Python's types or our classes."""

import pytest

from clustercert.http.body import RequestBody, parsed
from clustercert.http.cce.clustercert import ClusterCertRequest
from clustercert.http.keystone.bodies import TemporaryKeyRequest, TokenRequest
from clustercert.model.errors import InvalidRequest

WHOLE = "duration: must be a whole number, without quotes or a decimal point."


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
    ],
)
def test_an_invalid_field_is_named_in_plain_words(shape: type[RequestBody], body: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parsed(body.encode(), shape)
    assert caught.value.message == message
