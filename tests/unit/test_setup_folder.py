"""The folder of `kubernetes setup`: what is read back, and files that were edited."""

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clustercert.kubernetes.setup.authorization import (
    authorization_configuration,
    webhook_kubeconfig,
)
from clustercert.kubernetes.setup.choices import GivenChoices, SetupError
from clustercert.kubernetes.setup.documents import to_yaml
from clustercert.kubernetes.setup.folder import ExistingSetup, SetupFolder
from clustercert.kubernetes.setup.values import WebhookClient
from clustercert.pki.certificates import chain_pem
from support import samples
from support.cluster_setup import cluster_setup

CA_PEM = chain_pem((samples.cluster().client_ca.ca_certificate,)).decode()
CHOICES = GivenChoices(
    cluster_id="0f-1e",
    mode="known-only",
    unauthorized_ttl="1m30s",
    webhook_url="https://c.example.com:8443",
    webhook_ca=CA_PEM,
    audit=False,
    bind={"clustercert:admins": "cluster-admin", 'odd "group" = \\ \x7f': "view"},
)
URL = "https://c.example.com:8443/clustercert/v1/kubernetes/clusters/0f-1e/authorize"


@pytest.fixture
def folder(tmp_path: Path) -> SetupFolder:
    return SetupFolder(tmp_path / "control-plane")


def configured(**changes: Any) -> str:
    return to_yaml([authorization_configuration(cluster_setup(mode="known-only", **changes))])


def choices_of(folder: SetupFolder) -> GivenChoices:
    choices = folder.read().choices
    assert choices is not None
    return choices


def names(folder: SetupFolder) -> set[str]:
    return {path.name for path in folder.path.iterdir()}


def test_choices_are_read_as_they_were_written(folder: SetupFolder) -> None:
    assert folder.read() == ExistingSetup()
    written = folder.write({"rbac.yaml": "a: 1\n"}, CHOICES)

    assert written == ("rbac.yaml", "setup.toml")
    assert choices_of(folder).model_copy(update={"written": {}}) == CHOICES
    assert folder.read().files == ("rbac.yaml",)
    assert stat.S_IMODE((folder.path / "setup.toml").stat().st_mode) == 0o600


@given(group=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_every_group_can_be_written_into_toml(tmp_path_factory: pytest.TempPathFactory, group: str) -> None:
    made = SetupFolder(tmp_path_factory.mktemp("folder"))
    bind = {group: "view"}
    made.write({}, CHOICES.model_copy(update={"bind": bind}))
    assert choices_of(made).bind == bind


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a: [", "not valid TOML"),
        ("[other]", "other: unknown field"),
        ('cluster_id = "0f-1e"', "bind: the field is missing"),
        ('mode = "none"', "mode: write 'default' or 'known-only'"),
        ('unauthorized_ttl = "6m"', "at most 300s"),
        ('timeout = "31s"', "at most 30s"),
        ('kubernetes_version = "1.23"', "at least 1.24"),
        ('webhook_url = "http://c.example.com"', "can't use http://c.example.com"),
        ('webhook_url = "c"', "not the address of a service"),
        ('webhook_ca = "x"', "PEM"),
        ('control_plane_dir = "k"', "Write an absolute path"),
        ('control_plane_dir = "/"', "Write an absolute path"),
        ('control_plane_dir = "/etc/k/../pki"', "Write an absolute path"),
        ('control_plane_dir = "/etc/my files"', "Write an absolute path"),
        ('control_plane_dir = "/etc/k;reboot"', "Write an absolute path"),
        ('control_plane_dir = "/etc/$(id)"', "Write an absolute path"),
    ],
)
def test_a_wrong_setup_toml_is_an_error_with_its_place(folder: SetupFolder, line: str, said: str) -> None:
    folder.path.mkdir()
    (folder.path / "setup.toml").write_text(f"\n{line}\n")
    with pytest.raises(SetupError) as caught:
        folder.read()
    assert said in caught.value.message
    assert str(folder.path / "setup.toml") in caught.value.message


def test_the_parents_of_a_new_folder_are_private_too(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    made = SetupFolder(tmp_path / "out" / "Default" / "prod")
    made.write({"rbac.yaml": ""}, CHOICES)
    folders = (made.path, *made.path.parents[:3])
    assert [stat.S_IMODE(each.stat().st_mode) for each in folders] == [0o700, 0o700, 0o700, 0o755]


def test_files_without_setup_toml_are_not_updated(folder: SetupFolder) -> None:
    folder.check(force=False)
    folder.write({"rbac.yaml": ""}, CHOICES)
    with pytest.raises(SetupError, match="add --force"):
        folder.check(force=False)
    folder.check(force=True)
    (folder.path / "setup.toml").unlink()
    with pytest.raises(SetupError, match=r"no setup\.toml"):
        folder.check(force=True)


# Edited files


def test_an_edited_file_is_not_replaced(folder: SetupFolder) -> None:
    folder.write({"rbac.yaml": "a: 1\n", "README.md": "one"}, CHOICES)
    (folder.path / "rbac.yaml").write_text("a: 2\n")

    written = folder.write({"rbac.yaml": "a: 3\n", "README.md": "two"}, choices_of(folder))

    assert written == ("new-rbac.yaml", "README.md", "setup.toml")
    assert (folder.path / "rbac.yaml").read_text() == "a: 2\n"
    assert (folder.path / "new-rbac.yaml").read_text() == "a: 3\n"
    assert (folder.path / "README.md").read_text() == "two"
    # As long as it differs, also without another change.
    assert "new-rbac.yaml" in folder.write({"rbac.yaml": "a: 3\n"}, choices_of(folder))
    # The operator has taken the new version over.
    (folder.path / "new-rbac.yaml").replace(folder.path / "rbac.yaml")
    assert folder.write({"rbac.yaml": "a: 4\n"}, choices_of(folder)) == ("rbac.yaml", "setup.toml")


def test_a_file_that_was_edited_into_the_new_content_is_not_reported(folder: SetupFolder) -> None:
    folder.write({"rbac.yaml": "a: 1\n"}, CHOICES)
    (folder.path / "rbac.yaml").write_text("a: 2\n")
    (folder.path / "new-rbac.yaml").touch()

    assert folder.write({"rbac.yaml": "a: 2\n"}, choices_of(folder)) == ("rbac.yaml", "setup.toml")
    assert names(folder) == {"rbac.yaml", "setup.toml"}


def test_a_file_of_somebody_else_is_not_replaced(folder: SetupFolder) -> None:
    folder.path.mkdir()
    (folder.path / "audit-policy.yaml").write_text("mine")
    assert folder.write({"audit-policy.yaml": "a: 1\n"}, CHOICES)[0] == "new-audit-policy.yaml"


def test_obsolete_files_are_removed_unless_somebody_needs_them(folder: SetupFolder) -> None:
    folder.write({"audit-policy.yaml": "", "audit-webhook.kubeconfig": "", "rbac.yaml": ""}, CHOICES)
    (folder.path / "audit-policy.yaml").write_text("mine")

    folder.write({}, choices_of(folder))

    assert names(folder) == {"removed-audit-policy.yaml", "removed-rbac.yaml", "setup.toml"}
    assert folder.read().files == ("rbac.yaml",)


# The authorization configuration


def edited_configuration(folder: SetupFolder, **webhook: object) -> Any:
    """Add an authorizer, and change fields of this service's webhook."""
    path = folder.path / "authorization-config.yaml"
    document: Any = yaml.safe_load(path.read_bytes())
    document["authorizers"][0]["webhook"] |= webhook
    document["authorizers"].insert(0, {"type": "Webhook", "name": "other", "webhook": {"timeout": "9s"}})
    path.write_text(yaml.safe_dump(document))
    return document


def test_additions_to_the_configuration_are_kept(folder: SetupFolder) -> None:
    name = "authorization-config.yaml"
    folder.write({name: configured()}, CHOICES)
    expected = edited_configuration(folder, cacheUnauthorizedRequests=False)
    found = folder.read()

    changed = configured(unauthorized_ttl="9s", previous_authorization=found.authorization)

    assert folder.write({name: changed}, choices_of(folder)) == (name, "setup.toml")
    expected["authorizers"][1]["webhook"]["unauthorizedTTL"] = "9s"
    assert yaml.safe_load((folder.path / name).read_bytes()) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"unauthorizedTTL": "7s"},
        {"failurePolicy": "Deny"},
        {"matchConditions": [{"expression": "request.user != 'breakglass'"}]},
        {"matchConditions": None},
        {"connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": "/etc/other/webhook.kubeconfig"}},
        {"connectionInfo": {"type": "InClusterConfig"}},
        {"connectionInfo": None},
    ],
)
def test_changed_values_of_this_service_are_not_overwritten(
    folder: SetupFolder, changes: Mapping[str, object]
) -> None:
    name = "authorization-config.yaml"
    folder.write({name: configured()}, CHOICES)
    edited_configuration(folder, **changes)
    before = (folder.path / name).read_text()

    new = configured(previous_authorization=folder.read().authorization)

    assert folder.write({name: new}, choices_of(folder))[0] == f"new-{name}"
    assert (folder.path / name).read_text() == before
    assert "other" in (folder.path / f"new-{name}").read_text()


@pytest.mark.parametrize(
    "content", [b"a: [", b"\xff\xfe", b"- a", b"authorizers: []", b"", b"authorizers: [1]"]
)
def test_an_unreadable_configuration_is_not_replaced(folder: SetupFolder, content: bytes) -> None:
    name = "authorization-config.yaml"
    folder.write({name: configured()}, CHOICES)
    (folder.path / name).write_bytes(content)

    assert folder.read().authorization is None
    written = folder.write({name: configured()}, choices_of(folder))

    assert written[0] == f"new-{name}"
    assert (folder.path / name).read_bytes() == content


# The token


def test_the_kubeconfig_named_in_the_configuration_is_read(folder: SetupFolder) -> None:
    client = WebhookClient(b"certificate", b"key")
    configuration = configured().replace("webhook.kubeconfig", "webhook-2.kubeconfig")
    folder.write(
        {
            "authorization-config.yaml": configuration,
            "webhook.kubeconfig": webhook_kubeconfig(URL, None, "ccw_old"),
        },
        CHOICES,
    )
    before = folder.read()
    (folder.path / "webhook-2.kubeconfig").write_text(webhook_kubeconfig(URL, None, "ccw_new", client))
    found = folder.read()
    assert (before.token, before.client) == ("ccw_old", None)
    assert (found.token, found.client) == ("ccw_new", client)


def test_the_token_in_the_new_version_of_an_edited_kubeconfig_is_read(folder: SetupFolder) -> None:
    """Otherwise each run would create a token."""
    name = "webhook.kubeconfig"
    folder.write({name: webhook_kubeconfig(URL, None, "ccw_old")}, CHOICES)
    (folder.path / name).write_text(webhook_kubeconfig("https://127.0.0.1/", None, "ccw_old"))

    folder.write({name: webhook_kubeconfig(URL, None, "ccw_new")}, choices_of(folder))

    assert folder.read().token == "ccw_new"


@pytest.mark.parametrize("content", ["a: [", "- a", "users: []", "users: [{user: 1}]", "\ufffd: \x00"])
def test_an_unreadable_kubeconfig_is_named(folder: SetupFolder, content: str) -> None:
    folder.write({"webhook.kubeconfig": content}, CHOICES)
    with pytest.raises(SetupError, match="can't be read back") as caught:
        folder.read()
    assert str(folder.path / "webhook.kubeconfig") in caught.value.message
