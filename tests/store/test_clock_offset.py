from datetime import UTC, datetime, timedelta
from unittest.mock import patch

from clustercert.store.engine import database as database_module
from clustercert.store.engine.database import Database
from support.stores import Store


class Fast(datetime):
    @classmethod
    def now(cls, tz: object = None) -> "Fast":
        return cls.fromtimestamp(datetime.now(UTC).timestamp() + 3600, UTC)


async def test_a_fast_clock_is_measured(database: Database, store: Store) -> None:
    assert abs(await database.clock_offset()) < timedelta(minutes=1)
    with patch.object(database_module, "datetime", Fast):
        offset = await database.clock_offset()
    if store.file is not None:
        # SQLite has no clock of its own.
        assert offset == timedelta()
    else:
        assert abs(offset - timedelta(hours=1)) < timedelta(minutes=1)
