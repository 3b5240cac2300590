"""Runs that differ only by changes: no settings of whoever runs the tests, and the same examples each time."""

import os
from collections.abc import Iterator

import hypothesis
import pytest

from support import postgres
from support.page_tests import pytest_runtest_call  # noqa: F401 - a hook

# Programs that tests may use instead of those that they find themselves.
PROGRAMS = {"CLUSTERCERT_BIN"}
SETTINGS = ("CLUSTERCERT_", "OS_")
FILES = {"KUBECONFIG", "KUBERNETES_EXEC_INFO"}


def _is_setting(name: str) -> bool:
    """Whether a variable changes what our programs or their libraries do."""
    if name.lower().endswith("_proxy") or name in FILES:
        return True
    return name.startswith(SETTINGS) and name not in PROGRAMS


for variable in filter(_is_setting, list(os.environ)):
    del os.environ[variable]
# `make test-long` chooses `full` with --hypothesis-profile.
for profile, examples in (("quick", 25), ("full", 100)):
    # A busy machine takes its time: no example has a deadline, and slow generation is no failure.
    hypothesis.settings.register_profile(
        profile,
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
    )
hypothesis.settings.load_profile("quick")


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Server]:
    """A PostgreSQL server, which all tests in this process share."""
    with postgres.server() as running:
        yield running
