import hashlib
import json
from datetime import UTC, datetime, timedelta

import pytest

from support.keystone import UNAUTHORIZED, Keystone, in_project

TEMPORARY = "/v3.0/OS-CREDENTIAL/securitytokens"
# As in OTC's documents, Huawei's documents, and Huawei's SDKs.
DURATIONS: list[tuple[dict[str, object], int]] = [
    ({}, 900),
    ({"duration-seconds": "3600"}, 3600),
    ({"duration_seconds": "3600"}, 3600),
    ({"duration_seconds": 21_600}, 21_600),
    ({"duration_seconds": None, "id": None}, 900),
]


@pytest.mark.parametrize(("wish", "seconds"), DURATIONS)
def test_a_temporary_key_signs_with_its_security_token_and_not_without(
    keystone: Keystone, wish: dict[str, object], seconds: int
) -> None:
    token = keystone.login(scope=in_project(keystone.project))
    body = {"auth": {"identity": {"methods": ["token"], "token": wish, "policy": None}}}
    before = datetime.now(UTC)
    response = keystone.http.post(TEMPORARY, json=body, headers={"X-Auth-Token": token})
    assert response.status_code == 201
    assert response.headers["cache-control"] == "no-store"
    credential = response.json()["credential"]
    assert credential.keys() == {"access", "secret", "securitytoken", "expires_at"}
    ends = datetime.strptime(credential["expires_at"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    assert before <= ends - timedelta(seconds=seconds) <= datetime.now(UTC)
    key = (credential["access"], credential["secret"])
    with_token = {"X-Security-Token": credential["securitytoken"]}
    found = keystone.signed("GET", "/v3/projects", key, more=with_token)
    assert [project["name"] for project in found.json()["projects"]] == ["eu-de"]
    assert (keystone.signed("GET", "/v3/projects", key)).json() == UNAUTHORIZED
    wrong = {"X-Security-Token": hashlib.sha256(b"x").hexdigest()}
    assert (keystone.signed("GET", "/v3/projects", key, more=wrong)).json() == UNAUTHORIZED
    another = keystone.signed("POST", TEMPORARY, key, body=json.dumps(body).encode(), more=with_token)
    assert another.status_code == 403


def test_a_temporary_key_is_given_for_a_token_in_the_body_or_a_signature(keystone: Keystone) -> None:
    token = keystone.login()
    in_body = {"auth": {"identity": {"methods": ["token"], "token": {"id": token, "duration_seconds": 900}}}}
    assert (keystone.http.post(TEMPORARY, json=in_body)).status_code == 201
    body = b'{"auth":{"identity":{"methods":["token"]}}}'
    response = keystone.signed("POST", TEMPORARY, keystone.new_key(keystone.alice), body=body)
    assert response.status_code == 201
    # A token in a header is checked instead of the one in the body.
    refused = keystone.http.post(TEMPORARY, json=in_body, headers={"X-Auth-Token": "x" * 43})
    assert refused.json() == UNAUTHORIZED


BAD_WISHES: list[dict[str, object]] = [
    {"methods": ["assume_role"]},
    {"methods": []},
    {"methods": ["token"], "token": {"duration_seconds": 899}},
    {"methods": ["token"], "token": {"duration_seconds": 86_401}},
    {"methods": ["token"], "token": {"duration_seconds": -900}},
    {"methods": ["token"], "token": {"duration_seconds": 10**40}},
    {"methods": ["token"], "token": {"duration_seconds": "1h"}},
    {"methods": ["token"], "token": {"duration_seconds": "٩٠٠"}},
    {"methods": ["token"], "token": {"duration_seconds": 900.5}},
    {"methods": ["token"], "token": {"duration_seconds": True}},
    {"methods": ["token"], "policy": {"Version": "1.1", "Statement": []}},
]


def test_a_wish_for_a_temporary_key_that_cannot_be_met_is_a_400(
    keystone: Keystone,
) -> None:
    headers = {"X-Auth-Token": keystone.login()}
    for identity in BAD_WISHES:
        response = keystone.http.post(TEMPORARY, json={"auth": {"identity": identity}}, headers=headers)
        assert response.status_code == 400, identity
        assert response.json()["error"]["title"] == "Bad Request"
