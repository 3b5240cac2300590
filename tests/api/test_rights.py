"""Each cell of the documentation's tables of rights, asked for; and that no operation lacks a row."""

import asyncio
from collections.abc import Iterator

import pytest

import world as worlds
from clustercert.app.wiring import components
from clustercert.model import Origin
from inprocess import Service
from rights import API_SERVERS, PEOPLE, Cell, Place, cells, operations
from world import ACTOR, World

CELLS = cells("People", PEOPLE) + cells("API servers", API_SERVERS)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    world = worlds.make(tmp_path_factory.mktemp("rights"))
    tokens = asyncio.run(webhook_tokens(world))
    with Service(world.settings()).running() as service:
        yield Place(world, service.client, tokens)


async def webhook_tokens(world: World) -> dict[str, str]:
    """By the table's column: of the cluster that is asked about, and of another one of the project."""
    origin = Origin(address="local", request_id="e" * 32)
    async with components(world.settings()) as parts:
        made = [
            await parts.webhook.tokens.create(world.clusters[name], actor=ACTOR, origin=origin)
            for name in ("plain", "eip")
        ]
        # The table's answers are those of a log with something in it, whatever is asked for first.
        await parts.log_sealer.seal_all()
    return dict(zip(API_SERVERS[2:], (each.text for each in made), strict=True))


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_cell_is_answered_as_the_table_says(place: Place, cell: Cell) -> None:
    answer = place.ask(cell)
    assert answer.status_code == cell.status, answer.text


def test_every_operation_has_its_rows(place: Place) -> None:
    described = place.client.get("/openapi.json").json()
    assert {cell.operation for cell in CELLS} == operations(described)


def test_what_differs_by_whose_it_is_has_both_rows() -> None:
    by_operation: dict[str, set[str]] = {}
    for cell in CELLS:
        by_operation.setdefault(cell.operation, set()).add(cell.about)
    split = {operation for operation, about in by_operation.items() if len(about) > 1}
    assert all(by_operation[operation] == {"own", "another's"} for operation in split)
    assert len(split) == 6
    assert len({(cell.operation, cell.about, cell.who) for cell in CELLS}) == len(CELLS)
