"""Which test runs the console blocks with output of a page, and the check that it does.

A conftest.py imports `pytest_runtest_call`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from support.page_steps import Step, blocks, following

TESTS = Path(__file__).resolve().parents[1]
# For each page: the headings above blocks with output, and the test that runs these blocks.
_INSTALL = "clients/test_install.py::test_from_an_empty_machine_to_a_colleagues_kubectl"
_QUICK_STARTS = "clients/test_quick_starts.py"
RUN_BY: Mapping[str, Mapping[str, str]] = {
    "README.md": {
        "I want to use kubectl now": f"{_QUICK_STARTS}::test_developers[README]",
        "Revoke": "clients/test_readme.py::test_the_readmes_lines_on_revocation_do_what_they_say",
    },
    "docs/administration.md": {"Two customers with the same names": _INSTALL},
    "docs/backup.md": {"SQLite": "e2e/test_backup.py::test_a_restored_sqlite_file_has_what_was_backed_up"},
    "docs/install.md": {
        "2. TLS certificate with its CA": _INSTALL,
        "4. Settings and the key-encryption key": _INSTALL,
        "5. The first operator": _INSTALL,
        "8. The first login, and a cluster": _INSTALL,
        "9. The control plane": _INSTALL,
        "10. The colleague": _INSTALL,
    },
    "docs/pkcs11.md": dict.fromkeys(
        ("Set it up", "Run it"),
        "cli/test_pkcs11_docs.py::test_the_steps_lead_to_a_cluster_with_its_key_in_the_token",
    ),
    "docs/quick-starts.md": {
        "For developers": f"{_QUICK_STARTS}::test_developers[quick start]",
        "For operators": f"{_QUICK_STARTS}::test_operators",
        "For CI jobs": f"{_QUICK_STARTS}::test_ci_jobs",
    },
    "SECURITY.md": {
        "Verify a release": "e2e/test_release.py::test_a_stranger_verifies_and_rebuilds_a_release"
    },
}


def steps_of(test: str) -> list[Step]:
    """The steps that a test must run: those of all blocks with output below its headings."""
    return [
        step
        for page, tests in RUN_BY.items()
        if test in tests.values()
        for block in blocks(page)
        if block.has_output and block.illustration is None and tests.get(block.heading) == test
        for step in block.steps
    ]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test that passes without running the blocks for which it is named."""
    with following(steps_of(f"{item.path.relative_to(TESTS)}::{item.name}")):
        yield
