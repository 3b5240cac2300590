"""How a cluster's credentials are guarded, as an operator says it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from clustercert.certificate import chain_pem, new_client_ca
from clustercert.keypair import new_key
from operating import Operator
from stores import Store, sqlite_url

DEFAULTS = {
    "webhook_mode": "default",
    "exemptions": ["system:*"],
    "listed_masters": [],
    "credential_roles": None,
    "admission": False,
}


@pytest.fixture
def server_ca(tmp_path: Path) -> Path:
    ca = new_client_ca("kubernetes", new_key("ec-p256"), datetime.now(UTC), timedelta(days=1))
    path = tmp_path / "server-ca.pem"
    path.write_bytes(chain_pem((ca,)))
    return path


def add(operator: Operator, server_ca: Path, *more: str) -> dict[str, Any]:
    operator.types("project", "create", "eu-de")
    address = ("--internal-url", "https://10.0.0.5:6443", "--server-ca", server_ca)
    return guarding(operator.gets_json("cluster", "add", "prod", "--project", "eu-de", *address, *more))


def update(operator: Operator, *more: str) -> dict[str, Any]:
    return guarding(operator.gets_json("cluster", "update", "prod", *more))


def guarding(shown: dict[str, Any]) -> dict[str, Any]:
    return {field: shown[field] for field in DEFAULTS}


def test_nothing_said_is_the_default(operator: Operator, server_ca: Path) -> None:
    assert add(operator, server_ca) == DEFAULTS
    assert guarding(operator.gets_json("cluster", "show", "prod")) == DEFAULTS


def test_everything_can_be_said_at_first(operator: Operator, server_ca: Path) -> None:
    said = (
        "--webhook-mode", "known-only", "--exempt", "ops", "--exempt", "robots:*", "--listed-master", "AB:" * 31 + "AB",
        "--credential-role", "admin=cluster-admin", "--credential-role", "member=team=edit", "--admission",
    )  # fmt: skip
    assert add(operator, server_ca, *said) == {
        "webhook_mode": "known-only",
        "exemptions": ["system:*", "ops", "robots:*"],
        "listed_masters": ["ab" * 32],
        "credential_roles": {"admin": "cluster-admin", "member": "team=edit"},
        "admission": True,
    }


def test_what_is_said_later_is_on_top(operator: Operator, server_ca: Path) -> None:
    add(operator, server_ca, "--webhook-mode", "known-only", "--exempt", "ops", "--listed-master", "ab" * 32)
    assert update(operator, "--version", "v1.33") == DEFAULTS | {
        "webhook_mode": "known-only",
        "exemptions": ["system:*", "ops"],
        "listed_masters": ["ab" * 32],
    }
    changed = update(
        operator, "--webhook-mode", "default", "--exempt", "ops", "--remove-exempt", "system:*",
        "--remove-listed-master", "ab" * 32, "--listed-master", "cd" * 32, "--admission",
    )  # fmt: skip
    assert changed == DEFAULTS | {
        "exemptions": ["ops"],
        "listed_masters": ["cd" * 32],
        "admission": True,
    }
    assert update(operator, "--no-admission")["admission"] is False


def test_credential_roles_are_added_to_and_given_up_without_forgetting_that_they_were(
    operator: Operator, server_ca: Path
) -> None:
    add(operator, server_ca)
    assert update(operator, "--no-credential-roles")["credential_roles"] is None
    assert update(operator, "--credential-role", "admin=a")["credential_roles"] == {"admin": "a"}
    more = update(operator, "--credential-role", "member=b", "--credential-role", "admin=c")
    assert more["credential_roles"] == {"admin": "c", "member": "b"}
    assert update(operator, "--no-credential-roles")["credential_roles"] == {}


@pytest.mark.parametrize("said", [("--admission",), ("--credential-role", "admin=cluster-admin")])
def test_what_the_cluster_has_to_be_given_is_said(
    operator: Operator, server_ca: Path, said: tuple[str, ...]
) -> None:
    add(operator, server_ca)
    assert "kubernetes setup" in operator.types("cluster", "update", "prod", *said).err
    assert operator.types("cluster", "update", "prod", "--no-admission", "--exempt", "ops").err == ""


def test_removing_a_cluster_says_what_stays_in_it(operator: Operator, server_ca: Path) -> None:
    add(operator, server_ca, "--credential-role", "admin=cluster-admin")
    assert "clustercert:credential:" in operator.types("cluster", "remove", "prod", "--yes").err


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (("--exempt", "*"), "exemption"),
        (("--exempt", ""), "exemption"),
        (("--exempt", "a*b"), "exemption"),
        (("--exempt", "tab\there"), "exemption"),
        (("--exempt", "x" * 254), "exemption"),
        (("--listed-master", "ab"), "fingerprint"),
        (("--listed-master", "zz" * 32), "fingerprint"),
        (("--credential-role", "admin=a/b"), "ClusterRole"),
        (("--credential-role", "admin=.."), "ClusterRole"),
        (("--credential-role", "admin=" + "x" * 254), "ClusterRole"),
        (sum((("--exempt", f"e{n}") for n in range(64)), ()), "at most 64"),
        (sum((("--listed-master", f"{n:064x}") for n in range(65)), ()), "at most 64"),
    ],
)
def test_what_is_out_of_bounds_is_refused(
    operator: Operator, server_ca: Path, said: tuple[str, ...], words: str
) -> None:
    add(operator, server_ca)
    assert words in operator.is_refused("cluster", "update", "prod", *said)
    assert guarding(operator.gets_json("cluster", "show", "prod")) == DEFAULTS


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (("--credential-role", "admin"), "RULE=CLUSTERROLE"),
        (("--credential-role", "=x"), "RULE=CLUSTERROLE"),
        (("--credential-role", "admin="), "RULE=CLUSTERROLE"),
        (("--credential-role", "auditor=view"), "no rule for the role auditor"),
        (("--credential-role", "admin=a", "--no-credential-roles"), "exclude each other"),
        (("--webhook-mode", "paranoid"), "known-only"),
    ],
)
def test_wrong_usage_is_said_to_be(operator: Operator, said: tuple[str, ...], words: str) -> None:
    assert words in " ".join(operator.misuses("cluster", "update", "prod", *said).split())


def test_a_change_is_in_the_audit(operator: Operator, server_ca: Path) -> None:
    add(operator, server_ca)
    update(operator, "--webhook-mode", "known-only", "--credential-role", "admin=cluster-admin")
    events = Store(sqlite_url(operator.folder / "data" / "clustercert.db")).events()
    (changed,) = [event["detail"] for event in events if event["kind"] == "cluster.updated"]
    assert isinstance(changed, dict)
    assert changed["options"] == {
        "mode": "known-only",
        "exemptions": ["system:*"],
        "listed_masters": [],
        "credential_roles": {"admin": "cluster-admin"},
        "admission": False,
        "admission_by_number": False,
    }


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ("clustercert:service", "uses itself"),
        ("clustercert:credential:" + "0" * 40, "only clustercert's own credential groups do"),
    ],
)
def test_no_rule_gives_the_names_that_this_service_uses_itself(
    operator: Operator, group: str, words: str
) -> None:
    operator.configure(f"[[policy.rules]]\nrole = 'admin'\ngroups = ['{group}']\nmax_lifetime = '1d'\n")
    assert words in operator.is_refused("cluster", "list")
