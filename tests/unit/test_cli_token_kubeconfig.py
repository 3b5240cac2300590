"""The command line's check of a kubeconfig with a token, and the notes about it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from clustercert.cli.kubeconfig.request import groups_in, token_notes
from clustercert.cli.kubeconfig.validation import validated_token
from clustercert.cli.options import CommandError
from clustercert.http.cce.clustercert import left_out_header
from clustercert.model import JsonObject
from support.token_clusters import unsigned_token

ISSUED_AT = datetime(2026, 1, 15, 10, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
TOKEN = unsigned_token("alice-1", ISSUED_AT, ISSUED_AT + 10 * MINUTE)
SERVER = {"server": "https://k", "certificate-authority-data": "Q0E="}


def answer(*, token: object = TOKEN, server: object = SERVER, **fields: object) -> JsonObject:
    return {
        "clusters": [{"name": "c", "cluster": server}],
        "users": [{"name": "user", "user": {"token": token, **fields}}],
        "contexts": [{"name": "internal", "context": {"cluster": "c", "user": "user"}}],
        "current-context": "internal",
    }


def test_a_token_is_kept_with_its_times() -> None:
    found = validated_token(answer(), ISSUED_AT + 10 * MINUTE)

    assert found.credential == {"token": TOKEN}
    assert found.username == "system:serviceaccount:clustercert-users:alice-1"
    assert (found.lifetime, found.token_expires_at) == (10 * MINUTE, ISSUED_AT + 10 * MINUTE)
    assert TOKEN not in repr(replace(found, document={}))
    assert token_notes(found) == []


def test_a_credential_ends_before_its_token_if_the_service_says_so() -> None:
    found = replace(validated_token(answer(), ISSUED_AT + 5 * MINUTE), left_out=("devs", "ops"))

    assert (found.lifetime, found.not_after) == (5 * MINUTE, ISSUED_AT + 5 * MINUTE)
    lacks, ends = token_notes(found)
    assert lacks == "The token lacks the groups devs, ops, which have no role in this cluster."
    assert ends == (
        "The service ends the token at 2026-01-15T10:35:00Z; if the service is down then, the token works until "
        "2026-01-15T10:40:00Z."
    )


def test_a_credential_ends_with_its_token_even_if_the_service_says_later() -> None:
    found = validated_token(answer(), ISSUED_AT + 60 * MINUTE)

    assert (found.lifetime, found.not_after) == (10 * MINUTE, ISSUED_AT + 10 * MINUTE)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (answer(token=None), "not a kubeconfig with a token"),
        (answer(token=f"{TOKEN}\r\nX-Remote-User: root"), "not a kubeconfig with a token"),
        (answer(token="opaque"), "not a kubeconfig with a token"),
        (answer() | {"users": []}, "not a kubeconfig with a token"),
        ({}, "not a kubeconfig with a token"),
        (answer(exec={"command": "rm"}), "exec"),
        (answer(tokenFile="/etc/passwd"), "tokenFile"),
        (answer(server={"server": "http://k"}), "give the token away.* unencrypted"),
        (answer(server=SERVER | {"insecure-skip-tls-verify": True}), "give the token away.* not check"),
    ],
)
def test_an_answer_that_would_harm_is_refused_without_the_token(wrong: JsonObject, message: str) -> None:
    with pytest.raises(CommandError, match=message) as error:
        validated_token(wrong, ISSUED_AT)
    assert TOKEN not in error.value.message


@pytest.mark.parametrize("groups", [(), ("devs",), ("a,b", "c%2Cd", "Müller & Söhne", "team:red")])
def test_names_of_groups_survive_the_header(groups: tuple[str, ...]) -> None:
    assert groups_in(left_out_header(groups)) == groups


def test_the_header_of_many_groups_passes_proxies() -> None:
    groups = tuple(f"{number:02}{'ü' * 120}" for number in range(64))
    header = left_out_header(groups)
    assert len(header) <= 2000
    assert groups_in(header) == groups[:2]
