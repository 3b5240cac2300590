import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from support.leaf_checks import BACKDATE, leaf_of
from support.request_cases import NO_CREDENTIAL, ROWS, TOO_LONG, Row
from support.service import Service
from support.world import World

OTHER_CLOUDS = "`duration` 1826, 1827 with `api.max_duration = 1827`"
DOCUMENT = Path(__file__).parents[2] / "docs" / "cce-divergences.md"


def send(client: httpx.Client, world: World, row: Row, headers: dict[str, str]) -> httpx.Response:
    if row.content_type is not None:
        headers = headers | {"Content-Type": row.content_type}
    body = row.body()
    content = body.encode() if isinstance(body, str) else body
    return client.post(world.path(), content=content, headers=headers)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.request)
def test_a_request_is_answered_as_the_table_says(client: httpx.Client, world: World, row: Row) -> None:
    begun = datetime.now(UTC)
    response = send(client, world, row, world.people["admin"].headers)
    took = (datetime.now(UTC) - begun).total_seconds()
    status, code = row.answer
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    if row.lifetime is None:
        assert response.json()["errorCode"] == code
        assert row.says in response.json()["errorMessage"]
        return
    leaf = leaf_of(response.json())
    issued_at = leaf.not_valid_before_utc + BACKDATE
    # The test computed expire_at from the second in which it sent the request.
    late = (issued_at + row.lifetime - leaf.not_valid_after_utc).total_seconds()
    assert 0 <= late <= (took + 1 if "expire_at" in row.request else 0)
    assert response.headers["X-Clustercert-Not-After"] == f"{leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.request)
def test_without_a_valid_credential_only_the_size_is_judged(
    client: httpx.Client, world: World, row: Row
) -> None:
    status, code = row.answer if row.answer[0] == 413 else (401, "CCE.01401001")
    for headers in ({}, {"X-Auth-Token": "A" * 43}):
        response = send(client, world, row, headers)
        assert (response.status_code, response.json()["errorCode"]) == (status, code)


def test_expire_at_is_the_end_to_the_second(client: httpx.Client, world: World) -> None:
    end = datetime.fromisoformat("2029-02-28 23:59:59+00:00")
    body = {"expire_at": f"{end:%Y-%m-%d %H:%M:%S} +0000 UTC"}
    response = client.post(world.path(), json=body, headers=world.people["admin"].headers)
    assert leaf_of(response.json()).not_valid_after_utc == end


def test_two_content_types_are_refused(service: Service, world: World) -> None:
    """It is not clear which one applies."""
    headers = [
        (b"x-auth-token", world.people["admin"].token.encode()),
        (b"content-type", b"application/json"),
        (b"content-type", b"application/json"),
    ]
    response = service.send_raw("POST", world.path(), headers, [b'{"duration": 30}'])
    assert (response.status_code, response.json()["errorCode"]) == (400, "CCE.01400006")


def documented() -> dict[str, str]:
    """Return the first two cells of each row in the documented table."""
    text = DOCUMENT.read_text(encoding="utf-8")
    section = text.split("## Requests to POST clustercert")[1].split("\n## ")[0]
    cells = [re.split(r" \| ", line.strip("| ")) for line in section.splitlines() if line.startswith("| ")]
    return {request: answer for request, answer, *_ in cells[2:]}


def test_the_document_and_the_table_have_the_same_rows() -> None:
    assert len({row.request for row in ROWS}) == len(ROWS)
    # These three have their own tests: above, in test_limits.py, and below.
    groups = {row.group for row in ROWS} | {NO_CREDENTIAL, TOO_LONG, OTHER_CLOUDS}
    assert set(documented()) == groups


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.request)
def test_the_document_gives_the_answer_that_is_tested(row: Row) -> None:
    answer = documented()[row.group]
    if answer[:3].isdecimal() and row.answer[0] != 200:
        assert answer.startswith(" ".join(map(str, row.answer)))
    elif answer[:3].isdecimal():
        assert answer.startswith("200")


@pytest.mark.parametrize("days", [1826, 1827])
def test_longer_durations_need_a_setting_and_a_rule(
    service_with: Callable[..., Service], world: World, days: int
) -> None:
    rule: dict[str, object] = {
        "name": "admin",
        "when": {"roles": ["admin"]},
        "grant": {"groups": ["clustercert:admins"]},
    }

    def post(days: int, **changed: object) -> httpx.Response:
        client = service_with(api={"max_duration": 1827}, **changed).client
        return client.post(world.path(), json={"duration": days}, headers=world.people["admin"].headers)

    long_rule = {"rules": [rule], "max_lifetime": "1827d"}
    leaf = leaf_of(post(days, policy=long_rule).json())
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc - BACKDATE == timedelta(days=days)
    assert post(days, policy={"rules": [rule]}).status_code == 403
    refused = post(1828, policy=long_rule)
    assert (refused.status_code, refused.json()["errorCode"]) == (400, "CCE.01400001")
    assert "1827" in refused.json()["errorMessage"]
