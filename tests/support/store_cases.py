"""When the tests of the store run on which database."""

import pytest

POSTGRESQL_IN_LONG_RUNS = pytest.mark.parametrize(
    "store", ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)], indirect=True
)
"""On SQLite as usual, and on PostgreSQL in `make test-long` only: for tests that copy the database again and again,
or repeat examples."""
