"""`expires_in`: a lifetime from the time of the request. With `shorten`, the longest allowed if that is less."""

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest

from support import world as worlds
from support.leaf_checks import BACKDATE, leaf_of
from support.service import Service
from support.stores import rows
from support.world import World

HOUR = 3600
RULE = {"name": "readers", "when": {"roles": ["reader"]}, "grant": {"groups": ["g"], "max_lifetime": "8h"}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.make(Path(tmp_path_factory.mktemp("lifetimes")))


@pytest.fixture(scope="module")
def client(place: World) -> Iterator[httpx2.Client]:
    with Service(place.settings(policy={"rules": [RULE]})).running() as service:
        yield service.client


def ask(client: httpx2.Client, place: World, body: Mapping[str, object]) -> httpx2.Response:
    return client.post(place.path(), json=body, headers=place.people["reader"].headers)


def lifetime(response: httpx2.Response) -> timedelta:
    assert response.status_code == 200, response.text
    leaf = leaf_of(response.json())
    return leaf.not_valid_after_utc - leaf.not_valid_before_utc - BACKDATE


def events(place: World) -> list[dict[str, Any]]:
    found = rows(place.database, "SELECT body FROM audit_event WHERE kind LIKE 'certificate.%' ORDER BY id")
    return [json.loads(cast("bytes", body)) for (body,) in found]


@pytest.mark.parametrize("seconds", [300, 301, 8 * HOUR])
def test_a_lifetime_is_granted_to_the_second(client: httpx2.Client, place: World, seconds: int) -> None:
    assert lifetime(ask(client, place, {"expires_in": seconds})) == timedelta(seconds=seconds)
    shortenable = {"expires_in": seconds, "shorten": True, "duration": None, "expire_at": None}
    assert lifetime(ask(client, place, shortenable)) == timedelta(seconds=seconds)


def test_a_lifetime_over_the_limit_is_refused_or_shortened(client: httpx2.Client, place: World) -> None:
    before = len(events(place))
    for shorten in (False, None):
        refused = ask(client, place, {"expires_in": 9 * HOUR, "shorten": shorten})
        assert (refused.status_code, refused.json()["errorCode"]) == (403, "CCE.01403001")
        assert "(9 hours) exceeds the limit of rule readers (8 hours)" in refused.json()["errorMessage"]
    shortened = ask(client, place, {"expires_in": 9 * HOUR, "shorten": True})
    assert lifetime(shortened) == timedelta(hours=8)

    *_, event = found = events(place)[before:]
    assert [each["kind"] for each in found] == ["certificate.refused"] * 2 + ["certificate.issued"]
    requested, trace = event["detail"]["request"], event["detail"]["trace"]
    assert (requested["expires_in"], requested["shorten"]) == (9 * HOUR, True)
    assert trace["shortened"] is True
    granted = datetime.fromisoformat(event["detail"]["not_after"])
    assert datetime.fromisoformat(trace["requested_not_after"]) - granted == timedelta(hours=1)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"expires_in": 299}, "expires_in: must be 300 (5 minutes) to 157680000 (1825 days) seconds."),
        ({"expires_in": 1825 * 24 * HOUR + 1}, "expires_in: must be 300 (5 minutes) to"),
        ({"expires_in": -1}, "expires_in: must be 300 (5 minutes) to"),
        ({"expires_in": 10**30}, "expires_in: must be 300 (5 minutes) to"),
        ({"expires_in": "8h"}, "expires_in: must be a whole number"),
        ({"expires_in": True}, "expires_in: must be a whole number"),
        ({"expires_in": HOUR, "duration": 1}, "expires_in: send it without duration and expire_at."),
        (
            {"expires_in": HOUR, "expire_at": "2027-01-01 16:00:00 +0000 UTC"},
            "expires_in: send it without duration and expire_at.",
        ),
        ({"duration": 1, "shorten": True}, "shorten: send it with expires_in."),
        ({"shorten": True}, "shorten: send it with expires_in."),
        ({"expires_in": HOUR, "shorten": "yes"}, "shorten: must be true or false"),
    ],
)
def test_other_values_and_combinations_are_refused(
    client: httpx2.Client, place: World, body: Mapping[str, object], message: str
) -> None:
    response = ask(client, place, body)
    assert (response.status_code, response.json()["errorCode"]) == (400, "CCE.01400001")
    assert response.json()["errorMessage"].startswith(message)


def test_the_autopilot_form_has_the_fields_too(client: httpx2.Client, place: World) -> None:
    path = f"/autopilot/v3{place.path().removeprefix('/api/v3')}"
    headers = place.people["reader"].headers
    response = client.post(path, json={"expires_in": 9 * HOUR, "shorten": True}, headers=headers)
    assert lifetime(response) == timedelta(hours=8)
