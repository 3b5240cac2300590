import re
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from divergences import NO_CREDENTIAL, ROWS, TOO_LONG, Row
from inprocess import Service
from leaf import BACKDATE, leaf_of
from world import World

DOCUMENT = Path(__file__).parents[2] / "docs" / "cce-divergences.md"


def send(client: httpx.Client, world: World, row: Row, headers: dict[str, str]) -> httpx.Response:
    if row.content_type is not None:
        headers = headers | {"Content-Type": row.content_type}
    body = row.body()
    content = body.encode() if isinstance(body, str) else body
    return client.post(world.path(), content=content, headers=headers)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.request)
def test_a_request_is_answered_as_the_table_says(client: httpx.Client, world: World, row: Row) -> None:
    response = send(client, world, row, world.people["admin"].headers)
    status, code = row.answer
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    if row.lifetime is None:
        assert response.json()["errorCode"] == code
        assert row.says in response.json()["errorMessage"]
        return
    leaf = leaf_of(response.json())
    issued_at = leaf.not_valid_before_utc + BACKDATE
    # A time that was said as a time ahead is as exact as the second in which it was said.
    late = (issued_at + row.lifetime - leaf.not_valid_after_utc).total_seconds()
    assert 0 <= late <= (2 if "expire_at" in row.request else 0)
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
    """Nobody can tell which one was meant."""
    headers = [
        (b"x-auth-token", world.people["admin"].token.encode()),
        (b"content-type", b"application/json"),
        (b"content-type", b"application/json"),
    ]
    response = service.send_raw("POST", world.path(), headers, [b'{"duration": 30}'])
    assert (response.status_code, response.json()["errorCode"]) == (400, "CCE.01400006")


def documented() -> dict[str, str]:
    """First and second cell of each row of the documentation's table."""
    text = DOCUMENT.read_text(encoding="utf-8")
    section = text.split("## Requests to POST clustercert")[1].split("\n## ")[0]
    cells = [re.split(r" \| ", line.strip("| ")) for line in section.splitlines() if line.startswith("| ")]
    return {request: answer for request, answer, *_ in cells[2:]}


def test_the_document_and_the_table_have_the_same_rows() -> None:
    assert len({row.request for row in ROWS}) == len(ROWS)
    # These two have tests of their own: above, and in test_limits.py.
    groups = {row.group for row in ROWS} | {NO_CREDENTIAL, TOO_LONG}
    assert set(documented()) == groups


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.request)
def test_the_document_gives_the_answer_that_is_tested(row: Row) -> None:
    answer = documented()[row.group]
    if answer[:3].isdecimal() and row.answer[0] != 200:
        assert answer.startswith(" ".join(map(str, row.answer)))
    elif answer[:3].isdecimal():
        assert answer.startswith("200")
