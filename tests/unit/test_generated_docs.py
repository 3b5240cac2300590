"""The tables in docs/ that come from the code say what the code says."""

import pytest

from scripts import generate_docs


@pytest.mark.parametrize("name", generate_docs.TABLES)
def test_a_generated_table_is_up_to_date(name: str) -> None:
    page, updated = generate_docs.updated(name)
    assert page == updated, "run `make docs`"
