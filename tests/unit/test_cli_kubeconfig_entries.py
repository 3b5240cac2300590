"""What `kubeconfig merge` and `unmerge` do to entries that other programs wrote, and which addresses they accept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clustercert.cli.kubeconfig import entries, files, merge
from clustercert.cli.options import CommandError
from clustercert.model.kubeconfigs import (
    FILE_TEMPLATE,
    ClusterRef,
    address_warning,
    exec_kubeconfig,
    issued_addresses,
)

EMPTY = "apiVersion: v1\nkind: Config\n"
FOREIGN = """apiVersion: v1
kind: Config
clusters:
- name: default-prod
  cluster: {server: 'https://mine.test'}
users:
- name: default-prod
  user: {token: secret}
contexts:
- name: default-prod
  context: {cluster: default-prod, user: default-prod}
"""
NAME = "default-prod"
REF = ClusterRef("default", "1" * 32, "eu-de", "Default", "2" * 32, "prod", "Default/alice")


def new_entry() -> merge._NewEntry:
    return merge._NewEntry(REF, {"server": "https://theirs.test"}, entries.exec_user(REF, []))


def test_a_kubeconfig_for_a_file_has_the_entries_that_merge_writes(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(EMPTY)
    document = exec_kubeconfig(REF, {"server": "https://theirs.test"}, entries.plugin_command())
    name = str(document["current-context"])
    merge._write(merge._Plan.read(config), {name: new_entry()}, use=False)
    assert name == entries.context_name(FILE_TEMPLATE, REF, "alice") == "default-prod-22222222"
    assert files.load(config).value == document


def test_an_entry_that_another_program_added_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(EMPTY)
    plan = merge._Plan.read(config)
    plan.add(NAME, REF)
    config.write_text(FOREIGN)

    with pytest.raises(CommandError, match="has another entry named default-prod"):
        merge._write(plan, {NAME: new_entry()}, use=False)

    assert config.read_text() == FOREIGN
    assert list(tmp_path.iterdir()) == [config]


@pytest.mark.parametrize(
    "other",
    [
        {"domain": "acme", "project_id": "3" * 32},
        {"project": "eu-nl", "project_id": "3" * 32},
        {"profile": "work"},
        {"cluster_id": "3" * 32},
    ],
)
def test_a_name_that_another_cluster_has_is_explained(tmp_path: Path, other: dict[str, str]) -> None:
    config = tmp_path / "config"
    config.write_text(EMPTY)
    merge._write(merge._Plan.read(config), {NAME: new_entry()}, use=False)

    with pytest.raises(CommandError) as refused:
        merge._Plan.read(config).add(NAME, replace(REF, **other))

    assert refused.value.message == (
        f"{config} has default-prod already, as the context for the cluster Default/eu-de/prod with the login of "
        "Default/alice (profile default). Choose another name with --context-name."
    )


ACME = {"domain": "acme", "project_id": "3" * 32, "cluster_id": "3" * 32}
OTHER_TOOL = "contexts:\n- name: {}\n  context: {{cluster: c, user: u}}\n"


@pytest.mark.parametrize(
    ("present", "text", "is_unique", "name"),
    [
        ({}, "", True, "prod"),
        ({}, "", False, "Default/eu-de/prod"),
        # Another tool's contexts.
        ({}, OTHER_TOOL.format("prod"), True, "Default/eu-de/prod"),
        ({}, OTHER_TOOL.format("Prod"), True, "Default/eu-de/prod"),
        ({}, OTHER_TOOL.format("prods"), True, "prod"),
        ({}, "users:\n- name: prod\n  user: {token: t}\n", True, "Default/eu-de/prod"),
        # An earlier context of another cluster keeps its name.
        ({"prod": ACME}, "", False, "Default/eu-de/prod"),
        ({"prod": ACME}, "", True, "Default/eu-de/prod"),
        # Another service.
        ({"prod": {"profile": "work"}}, "", True, "default/prod"),
        ({"prod": {"profile": "work"}}, "", False, "Default/eu-de/prod"),
        ({"Default/eu-de/prod": {"profile": "work"}}, "", False, "default/Default/eu-de/prod"),
        ({"prod": {"profile": "work"}, "default/prod": ACME}, "", True, "default/Default/eu-de/prod"),
        ({"other": {"profile": "work"}}, "", True, "prod"),
    ],
)
def test_a_new_context_has_the_shortest_name_that_is_free(
    tmp_path: Path, present: dict[str, dict[str, str]], text: str, is_unique: bool, name: str
) -> None:
    config = tmp_path / "config"
    config.write_text(EMPTY + text)
    for context, changed in present.items():
        entry = new_entry()._replace(ref=replace(REF, **changed))
        merge._write(merge._Plan.read(config), {context: entry}, use=False)
    plan = merge._Plan.read(config)
    assert plan.new_name(REF, is_unique=is_unique) == name
    plan.add(name, REF)


def test_a_context_that_another_program_replaced_meanwhile_is_not_removed(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(FOREIGN)
    changed = files.change(config, lambda it: entries.remove(it, {NAME}))
    assert not changed
    assert config.read_text() == FOREIGN


def document(server: str) -> dict[str, Any]:
    return {
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "contexts": [{"name": "internal", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "internal",
    }


@pytest.mark.parametrize("server", ["http://10.0.0.1:8080", "HTTP://10.0.0.1", "10.0.0.1:6443", "httpss://a"])
def test_an_address_without_tls_is_not_a_verified_one(server: str) -> None:
    config = document(server)
    addresses = issued_addresses(config)
    with pytest.raises(CommandError, match="--insecure"):
        entries.verified_address(addresses, internal=False, insecure=False)
    with pytest.raises(CommandError, match="--insecure"):
        entries.verified_address(addresses, internal=False, insecure=False, only="internal")
    address = entries.verified_address(addresses, internal=False, insecure=True)
    assert address == {"server": server}
    assert "unencrypted" in str(address_warning(address))
    assert "unencrypted" in str(entries.current_address_warning(config))


def test_an_https_address_needs_no_warning() -> None:
    config = document("https://10.0.0.1:6443")
    assert entries.verified_address(issued_addresses(config), internal=True, insecure=False)
    assert entries.current_address_warning(config) is None


def test_a_cluster_whose_groups_can_only_be_requested_gets_an_entry_with_the_plugin() -> None:
    nothing: dict[str, Any] = {
        "id": "2" * 32,
        "name": "prod",
        "longest_lifetime_seconds": None,
        "requestable_groups": [],
    }
    requestable = nothing | {"requestable_groups": ["editors"]}
    refused = merge.EntryOptions().problem(nothing)
    assert refused is not None
    assert "The policy gives you no certificate for prod now." in refused.message
    assert merge.EntryOptions().problem(requestable) is None
    for options in (merge.EntryOptions(embed=True), merge.EntryOptions(files=True)):
        assert options.problem(requestable) is not None
