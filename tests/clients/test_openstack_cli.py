"""The `openstack` command with the OTC extensions, as a person runs it: settings in the environment."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.installed_demo import MISSING_CLUSTER, Demo, Tenant, operator
from support.kubeconfig_checks import assert_client_leaf
from support.openstack_command import openstack


def told(tenant: Tenant, *arguments: str) -> Any:
    done = openstack(tenant, *arguments, "-f", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def tenant(demo: Demo) -> Tenant:
    return demo.own


@pytest.fixture(scope="module")
def listed(tenant: Tenant) -> Any:
    """The row of the tenant's own cluster in `openstack cce cluster list`."""
    rows = told(tenant, "cce", "cluster", "list")
    return next(row for row in rows if row["ID"] == tenant.cluster_id)


def test_the_list_has_the_cluster(listed: Any) -> None:
    assert listed["name"]
    assert listed["status"] == "Available"


def test_show_takes_the_name(tenant: Tenant, listed: Any) -> None:
    shown = told(tenant, "cce", "cluster", "show", listed["name"])

    assert (shown["ID"], shown["name"]) == (tenant.cluster_id, listed["name"])
    assert shown["type"] == "VirtualMachine"


def test_certificate_show_takes_the_name(tenant: Tenant, listed: Any) -> None:
    shown = told(tenant, "cce", "cluster", "certificate", "show", listed["name"])

    assert_client_leaf(shown["client_certificate"], shown["client_key"], tenant)
    assert (shown["name"], shown["user"]) == ("internal", "user")
    assert shown["cluster"].startswith("https://")


@pytest.mark.parametrize("cluster", ["no-such-cluster", MISSING_CLUSTER], ids=["name", "id"])
def test_a_missing_cluster_is_one_sentence(tenant: Tenant, cluster: str) -> None:
    done = openstack(tenant, "cce", "cluster", "certificate", "show", cluster)

    assert done.returncode == 1
    assert f"No Cluster found for {cluster}" in done.stderr
    assert done.stdout == ""


def test_the_external_endpoint_is_listed(eip_demo: Demo) -> None:
    tenant = eip_demo.own
    row = next(row for row in told(tenant, "cce", "cluster", "list") if row["ID"] == tenant.cluster_id)
    assert row["endpoint"].startswith("https://")


def test_a_user_changes_their_password(demo: Demo, tenant: Tenant, tmp_path: Path) -> None:
    """A user of its own, because a new password ends tokens that other tests use."""
    old, new = "correct horse", "battery staple"
    (tmp_path / "password").write_text(f"{old}\n", encoding="utf-8")
    domain = ("--domain", tenant.domain_id)
    operator(demo, "user", "create", "changing", "--password-file", tmp_path / "password", *domain)
    operator(demo, "role", "assign", "member", "--user", "changing", "--project", tenant.project_id, *domain)
    person = replace(tenant, user_name="changing", password=old)
    command = ("user", "password", "set", "--original-password")
    wrong = openstack(person, *command, "wrong", "--password", new)
    assert (wrong.returncode, "401" in wrong.stderr) == (1, True), wrong.stderr
    done = openstack(person, *command, old, "--password", new)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr

    assert openstack(person, "cce", "cluster", "list").returncode == 1
    assert told(replace(person, password=new), "cce", "cluster", "list")
