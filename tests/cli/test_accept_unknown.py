"""`clustercert kubernetes accept-unknown`."""

from typing import Any

import pytest

from support.added_cluster import add_cluster, database
from support.command_line import Operator
from support.stores import execute, rows

COMMAND = ("kubernetes", "accept-unknown", "prod", "--local")


@pytest.fixture
def cluster(operator: Operator) -> dict[str, Any]:
    return add_cluster(operator)


def confirmed(operator: Operator) -> list[tuple[object, ...]]:
    return rows(database(operator), "SELECT unknown_confirmed FROM client_ca")


def test_the_deletion_of_waiting_credentials_is_confirmed_once(
    operator: Operator, cluster: dict[str, Any]
) -> None:
    execute(database(operator), "UPDATE client_ca SET unknown_tokens = 12")
    # Without a terminal, nobody can answer the question.
    assert "Delete 12 credentials of the cluster" in operator.run(*COMMAND).err
    assert confirmed(operator) == [(None,)]
    for _ in range(2):
        assert "within about a minute" in operator.run(*COMMAND, "--yes").err
    assert confirmed(operator) == [(12,)]
    query = "SELECT subject FROM audit_event WHERE kind = 'cluster_tokens.deletion_confirmed'"
    assert rows(database(operator), query) == [(cluster["id"],)]


def test_if_no_credential_waits_there_is_nothing_to_confirm(
    operator: Operator, cluster: dict[str, Any]
) -> None:
    done = operator.run(*COMMAND, "--yes")
    assert (done.code, "No credential of the cluster" in done.err) == (0, True)
    assert confirmed(operator) == [(None,)]
