"""The documented tables of permissions: each cell is tested, and each operation has a row."""

import asyncio
from collections.abc import Iterator

import pytest

from clustercert.model import Actor, Origin
from clustercert.wiring import open_components
from support import world as worlds
from support.access_table import API_SERVERS, PEOPLE, Cell, CellRequests, cells, operations
from support.quick_work import quick_passwords
from support.request_client import OFFERED_TO_ALL
from support.service import Service
from support.world import ACTOR, World

CELLS = cells("People", PEOPLE) + cells("API servers", API_SERVERS)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CellRequests]:
    world = worlds.make(tmp_path_factory.mktemp("rights"))
    tokens = asyncio.run(webhook_tokens(world))
    settings = world.settings(metrics={}, policy=OFFERED_TO_ALL)
    # Many cells are about a new token or user.
    with quick_passwords(), Service(settings).running() as service:
        yield CellRequests(world, service.client, tokens)


async def webhook_tokens(world: World) -> dict[str, str]:
    """Return webhook tokens by the table's columns: for the requested cluster, and for another one in the project."""
    origin = Origin(address="local", request_id="e" * 32)
    async with open_components(world.settings()) as components:
        made = [
            await components.webhook.tokens.create(world.clusters[name], actor=Actor(ACTOR, origin))
            for name in ("plain", "eip")
        ]
        # The table assumes a log with events, whichever row is tested first.
        await components.log_sealer.seal_all()
    return dict(zip(API_SERVERS[2:], (each.text for each in made), strict=True))


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_cell_is_answered_as_the_table_says(place: CellRequests, cell: Cell) -> None:
    answer = place.ask(cell)
    assert answer.status_code == cell.status, answer.text


def test_every_operation_has_its_rows(place: CellRequests) -> None:
    described = place.client.get("/openapi.json").json()
    assert {cell.operation for cell in CELLS} == operations(described)


def test_what_differs_by_whose_it_is_has_both_rows() -> None:
    by_operation: dict[str, set[str]] = {}
    for cell in CELLS:
        by_operation.setdefault(cell.operation, set()).add(cell.about)
    split = {operation for operation, about in by_operation.items() if len(about) > 1}
    assert all(by_operation[operation] == {"own", "another's"} for operation in split)
    assert len(split) == 22
    assert len({(cell.operation, cell.about, cell.who) for cell in CELLS}) == len(CELLS)
