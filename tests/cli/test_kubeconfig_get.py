"""`kubeconfig get` against a running service."""

import re
import stat
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from support.user_site import UserSite, assert_lives


def test_a_local_key_is_not_sent_to_the_service(world: UserSite) -> None:
    world.log_in()
    out = world.folder / "kubeconfig"
    arguments = (
        "kubeconfig",
        "get",
        "prod",
        "--local-key",
        "--expires-in",
        "15m",
        "--reason",
        "test",
        "--out",
        out,
    )

    asked_at = datetime.now(UTC)
    done = world.user(*arguments, "--context", "externalTLSVerify", "--cce-names")

    assert (done.code, done.out) == (0, ""), done.err
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    kubeconfig = yaml.safe_load(out.read_text())
    assert kubeconfig["current-context"] == "externalTLSVerify"
    assert_lives(kubeconfig, timedelta(minutes=15), asked_at)
    ((origin, reason),) = world.database(
        "SELECT key_origin, reason FROM certificate ORDER BY issued_at DESC, id DESC LIMIT 1"
    )
    assert (origin, reason) == ("csr", "test")

    before = out.read_bytes()
    assert "--force" in world.user(*arguments).err
    assert out.read_bytes() == before
    assert world.user(*arguments, "--force").code == 0
    assert out.read_bytes() != before


def test_the_default_lifetime_is_shortened_to_the_policys_limit(world: UserSite) -> None:
    world.log_in("bob")
    decisions = "SELECT kind FROM audit_event WHERE kind LIKE 'certificate.%' ORDER BY id"
    before = len(world.database(decisions))
    asked_at = datetime.now(UTC)
    done = world.user("kubeconfig", "get", "prod")
    assert done.code == 0, done.err
    assert_lives(yaml.safe_load(done.out), timedelta(hours=1), asked_at)
    assert world.database(decisions)[before:] == [("certificate.issued",)]
    exact = world.user("kubeconfig", "get", "prod", "--expires-in", "1h")
    assert exact.code == 0, exact.err


@pytest.mark.parametrize(
    ("option", "value", "advice"),
    [
        ("--expires-in", "2h", "Give a shorter --expires-in, or leave it out."),
        ("--duration", "1", "Request a shorter lifetime, or --duration -1 for the longest allowed."),
        ("--expire-at", "2100-01-01T00:00:00Z", "--expire-at: must be 15 minutes to 5 years"),
    ],
)
def test_a_longer_lifetime_is_refused_with_advice_about_the_option(
    world: UserSite, option: str, value: str, advice: str
) -> None:
    world.log_in("bob")
    done = world.user("kubeconfig", "get", "prod", option, value)
    assert done.code in {2, 4}
    assert done.out == ""
    assert done.err.startswith("Error: ")
    assert advice in done.err
    assert "CCE.0140" in done.err
    assert "request " in done.err


def test_a_role_without_a_rule_gets_no_certificate(world: UserSite) -> None:
    world.log_in("eve")
    done = world.user("kubeconfig", "get", "prod")
    assert (done.code, done.out) == (4, "")
    assert "CCE.01403001" in done.err
    [command] = re.findall(r"`clustercert (explain \S+)` shows the reason", done.err)
    explained = world.user(*command.split())
    assert (explained.code, explained.out.startswith("Refused (403): No rule gives your role")) == (1, True)


def test_a_cluster_of_another_project_than_the_logins_is_explained(world: UserSite) -> None:
    world.log_in()
    options = ("--internal-url", "https://10.0.0.6:6443", "--server-ca", world.folder / "server-ca.pem")
    world.operator.output("cluster", "add", "edge", "--project", "eu-nl", *options)
    for cluster, name in (("edge", "eu-nl/edge"), ("eu-nl/edge", "eu-nl/edge"), ("prod", "eu-de/prod")):
        assert world.user("kubeconfig", "get", cluster).code == 0
        explained = world.user("explain", cluster)
        assert explained.out.startswith(
            f"Allowed: alice gets a certificate for the cluster Default/{name}."
        ), explained
    world.operator.output("cluster", "remove", "edge", "--yes")


def test_missing_clusters_and_folders_are_named(world: UserSite) -> None:
    world.log_in()
    unknown = world.user("kubeconfig", "get", "prd")
    assert unknown.code == 5
    assert "There is no cluster prd in your projects. Did you mean prod?" in unknown.err
    missing = world.user("kubeconfig", "get", "00000000-0000-4000-8000-000000000000")
    assert missing.code == 5
    assert "does not exist" in world.user("kubeconfig", "get", "prod", "--out", "nowhere/x").err
    assert world.user("kubeconfig", "get", "prod", "--out", "-").out.startswith("kind: Config")


def test_nothing_is_issued_for_an_unknown_context(world: UserSite) -> None:
    world.log_in()
    count = "SELECT count(*) FROM certificate"
    before = world.database(count)
    done = world.user("kubeconfig", "get", "prod", "--context", "nope")
    assert (done.code, done.out) == (5, "")
    assert "no context nope. They have: internal, external, externalTLSVerify" in done.err
    assert world.database(count) == before


def test_a_kubeconfig_without_the_wanted_san_context_is_written(world: UserSite) -> None:
    world.log_in()
    asked_at = datetime.now(UTC)
    done = world.user("kubeconfig", "get", "prod", "--context", "customSAN-7")
    assert done.code == 1
    name = f"default-prod-{world.cluster_id[:8]}"
    assert f"no context customSAN-7. The current context is {name}." in done.err
    kubeconfig = yaml.safe_load(done.out)
    assert kubeconfig["current-context"] == name
    assert_lives(kubeconfig, timedelta(hours=8), asked_at)


def test_the_address_and_the_name_can_be_chosen(world: UserSite) -> None:
    world.log_in()
    template = ("--context-name", "{cluster}.{project}.{domain}.{user}")
    done = world.user("kubeconfig", "get", world.cluster_id, "--context", "internal", *template)
    kubeconfig = yaml.safe_load(done.out)
    assert kubeconfig["current-context"] == "prod.eu-de.Default.alice"
    assert kubeconfig["clusters"][0]["cluster"]["server"] == "https://10.0.0.5:6443"

    refused = world.user("kubeconfig", "get", "prod", "--context", "external")
    assert (refused.code, refused.out) == (1, "")
    assert "--insecure" in refused.err
    unsafe = world.user("kubeconfig", "get", "prod", "--context", "external", "--insecure")
    assert yaml.safe_load(unsafe.out)["clusters"][0]["cluster"]["insecure-skip-tls-verify"] is True
    assert "Warning: kubectl will not check the certificate" in unsafe.err
