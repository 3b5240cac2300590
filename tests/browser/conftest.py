"""A browser for each test file."""

from collections.abc import Iterator

import pytest

from support import browser as browsers
from support.browser import Browser


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = browsers.reason_to_skip()
    if reason is not None:
        for item in items:
            if item.path.parent.name == "browser":
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.browser() as running:
        yield running
