"""Clusters: what a caller may ask for by an id that is none."""

import pytest

from clustercert.store.clusters import ClusterRows
from clustercert.store.database import Database


@pytest.mark.parametrize(
    "cluster_id", ["", "\x00", "a\x00b", "\ud800", "x" * 10_000, "%00", "' OR true --", "\x7f"]
)
async def test_what_is_no_id_finds_nothing(database: Database, cluster_id: str) -> None:
    assert await ClusterRows(database).cluster("0" * 32, cluster_id) is None
