"""Which test runs the console blocks with output of a page, and the check that it does.

A conftest.py imports `pytest_runtest_call`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from support.page_steps import Step, blocks_with_output, following

TESTS = Path(__file__).resolve().parents[1]
# For each page: the headings above blocks with output, and the test that runs these blocks.
_INSTALL = "clients/test_install.py::test_from_an_empty_machine_to_a_colleagues_kubectl"
_OIDC = "cli/test_oidc_login.py::test_the_pages_show_a_login_and_how_an_operator_ends_it"
_ROTATION = "cli/test_cluster_ca.py"
_USE = "cli/test_page_commands.py"
_QUICK_STARTS = "clients/test_quick_starts.py"
RUN_BY: Mapping[str, Mapping[str, str]] = {
    "deploy/chart/README.md": {
        "Install": "chart/test_pod.py::test_a_release_with_only_a_name_and_a_key_is_a_working_service"
    },
    "README.md": {
        "Revoke": "clients/test_readme.py::test_the_readmes_lines_on_revocation_do_what_they_say",
    },
    "docs/access-requests.md": dict.fromkeys(("Ask", "Approve or deny"), f"{_USE}::test_an_access_request"),
    "docs/administration.md": {
        "Commands": f"{_USE}::test_administration",
        "A colleague leaves": _OIDC,
        "Remove a member or a role": f"{_USE}::test_administration",
        "Two customers with the same names": _INSTALL,
        "Clusters, access keys and webhook tokens": f"{_USE}::test_administration",
        "As code": f"{_USE}::test_documents_are_applied_once",
    },
    "docs/backup.md": {
        "SQLite": "e2e/test_backup.py::test_a_restored_sqlite_file_has_what_was_backed_up",
        "After a restore": "e2e/test_point_in_time.py"
        "::test_after_a_point_in_time_restore_later_certificates_are_unknown_and_later_revocations_lost",
    },
    "docs/csr-api.md": {"Set up": "cli/test_signing_cluster.py::test_the_rate_is_measured_on_request"},
    "docs/database.md": {
        "Connection poolers": "e2e/test_pooler.py::test_serve_refuses_to_start_behind_pooling_of_transactions"
    },
    "docs/install.md": {
        "2. TLS certificate with its CA": _INSTALL,
        "4. Settings and the key-encryption key": _INSTALL,
        "5. The first operator": _INSTALL,
        "8. The first login, and a cluster": _INSTALL,
        "9. The control plane": _INSTALL,
        "10. The colleague": _INSTALL,
    },
    "docs/keys.md": {
        "Replace the key": "e2e/test_service_user.py"
        "::test_root_replaces_the_key_backs_up_and_restores[postgresql]"
    },
    "docs/kubeconfig.md": dict.fromkeys(
        (
            "kubectl every day",
            "Which clusters, and which one now",
            "After a revocation",
            "Your certificates",
        ),
        f"{_USE}::test_kubectl_every_day",
    ),
    "docs/kubernetes.md": dict.fromkeys(
        (
            "Kubernetes: certificates that can be revoked",
            "Verify regularly",
            "Remove clustercert from a cluster",
        ),
        "cli/test_several_clusters.py::test_the_page_shows_what_verify_and_remove_print",
    ),
    "docs/login.md": {
        "Log in": f"{_USE}::test_a_lost_laptop",
        "In the browser": _OIDC,
        "Jobs": f"{_QUICK_STARTS}::test_ci_jobs",
        "A lost laptop": f"{_USE}::test_a_lost_laptop",
    },
    "docs/operations.md": {"The certificate of the service": f"{_USE}::test_a_fingerprint"},
    "docs/pkcs11.md": dict.fromkeys(
        ("Set it up", "Run it"),
        "cli/test_pkcs11_docs.py::test_the_steps_lead_to_a_cluster_with_its_key_in_the_token",
    ),
    "docs/policy.md": {"Examples": f"{_USE}::test_an_example_that_fails"},
    "docs/policy-changes.md": {
        "Live certificates": f"{_USE}::test_live_certificates_under_another_policy",
        "Explain": f"{_USE}::test_explanations",
    },
    "docs/recipes.md": {
        "Give jobs the client": "e2e/test_wheel.py::test_the_wheel_of_a_fresh_clone_is_installed_with_hashes"
    },
    "docs/replace-a-ca.md": {
        "See the progress": f"{_ROTATION}::test_a_whole_rotation_by_commands",
        "Which API servers": f"{_ROTATION}::test_an_abort_before_and_after_issuing",
    },
    "docs/quick-starts.md": {
        "For developers": f"{_QUICK_STARTS}::test_developers",
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
        for heading, named in tests.items()
        if named == test
        for block in blocks_with_output(page, heading)
        for step in block.steps
    ]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test that passes without running the blocks for which it is named."""
    with following(steps_of(f"{item.path.relative_to(TESTS)}::{item.name}")):
        yield
