"""`clustercert identity explain` and `clustercert user block`."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clustercert.authn.oidc import explanation
from clustercert.authn.oidc.issuers import derived_id
from support.command_line import Operator
from support.oidc import URL, IssuerServer, Response, claims_of, new_key, signed
from support.wait import SECONDS


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanation, "KEYS_SECONDS", SECONDS)


@pytest.fixture
def issuer(operator: Operator, tmp_path: Path) -> Iterator[IssuerServer]:
    with IssuerServer(tmp_path).running() as running:
        operator.configure(
            f"""
[[identity.issuers]]
name = "sso"
issuer = "{running.url}"
audiences = ["clustercert"]
ca_file = "{running.ca_file}"
username = "preferred_username"
groups = "groups"
domain = "Default"
roles = [{{role = "member", groups = ["team-*"]}}]
"""
        )
        yield running


def saved(folder: Path, text: str) -> Path:
    file = folder / "token"
    file.write_text(text + "\n")
    return file


def test_an_accepted_token_is_explained(operator: Operator, issuer: IssuerServer, tmp_path: Path) -> None:
    project = operator.output_json("project", "create", "eu-de")
    token = saved(tmp_path, issuer.token())
    said = operator.output_json("identity", "explain", "--token-file", token)
    assert (said["accepted"], said["user"]["roles"]) == (True, {project["id"]: ["member"]})
    table = operator.run("identity", "explain", "--token-file", token)
    assert "sso/team-blue" in table.out
    assert f"{project['id']}: member" in table.out
    assert "would be accepted" in table.err


def test_projects_are_named_with_their_domains(
    operator: Operator, issuer: IssuerServer, tmp_path: Path
) -> None:
    rule = '{role = "admin", projects = ["acme/eu-de"]}'
    settings = operator.config.read_text().replace(
        'domain = "Default"', 'projects = ["Default/eu-de", "acme/eu-de"]'
    )
    operator.config.write_text(settings.replace("roles = [", f"roles = [{rule}, "))
    token = saved(tmp_path, issuer.token())

    def explained() -> tuple[dict[str, list[str]], list[str]]:
        said = operator.output_json("identity", "explain", "--token-file", token)
        return said["user"]["roles"], said["missing"]

    own = operator.output_json("project", "create", "eu-de")["id"]
    assert explained() == ({own: ["member"]}, ["project acme/eu-de"])
    for domain in ("acme", "other"):
        operator.output("domain", "create", domain)
        operator.output("project", "create", "eu-de", "--domain", domain)
    theirs = operator.output_json("project", "show", "acme/eu-de")["id"]
    assert explained() == ({own: ["member"], theirs: ["admin", "member"]}, [])
    operator.output("project", "disable", "acme/eu-de", "--yes")
    assert explained() == ({own: ["member"]}, [])


def test_what_the_settings_name_and_does_not_exist_is_explained(
    operator: Operator, issuer: IssuerServer, tmp_path: Path
) -> None:
    operator.config.write_text(operator.config.read_text().replace('"member"', '"membr"'))
    token = saved(tmp_path, issuer.token())
    assert operator.output_json("identity", "explain", "--token-file", token)["missing"] == ["role membr"]
    table = operator.run("identity", "explain", "--token-file", token)
    assert "Warning: The settings of this issuer name objects that do not exist: role membr." in table.err


def test_each_role_rule_is_explained(operator: Operator, issuer: IssuerServer, tmp_path: Path) -> None:
    project = operator.output_json("project", "create", "eu-de")["id"]
    rules = f"""roles = [
  {{role = "member", groups = ["team-*"]}},
  {{role = "admin", projects = ["{project}"], groups = ["admins"], claims.ref = ["main", "release-*"]}},
  {{role = "operator", service = true, groups = ["root"]}},
]"""
    [line] = [line for line in operator.config.read_text().splitlines() if line.startswith("roles")]
    operator.config.write_text(operator.config.read_text().replace(line, rules))
    token = saved(tmp_path, issuer.token(groups=["team-blue"], ref="dev"))
    assert operator.output_json("identity", "explain", "--token-file", token)["role_rules"] == [
        {"role": "member", "projects": None, "service": False, "unmet": []},
        {
            "role": "admin",
            "projects": [project],
            "service": False,
            "unmet": [
                {"check": "groups", "passed": False, "came": "['team-blue']", "expected": "admins"},
                {"check": "ref", "passed": False, "came": "'dev'", "expected": "main or release-*"},
            ],
        },
        {
            "role": "operator",
            "projects": None,
            "service": True,
            "unmet": [{"check": "groups", "passed": False, "came": "['team-blue']", "expected": "root"}],
        },
    ]
    table = operator.output("identity", "explain", "--token-file", token, "-o", "wide")
    lines = [line.split() for line in table.splitlines()]
    assert ["1", "member", "yes", "-", "-", "-", "all"] in lines
    assert ["2", "admin", "no", "ref", "'dev'", "main", "or", "release-*", project] in lines
    assert ["3", "operator", "no", "groups", "['team-blue']", "root", "service"] in lines


def test_a_refused_token_is_explained(operator: Operator, issuer: IssuerServer, tmp_path: Path) -> None:
    text = issuer.token(aud="account")
    done = operator.run("identity", "explain", "--token-file", saved(tmp_path, text))
    assert done.code == 1
    [line] = [line for line in done.out.splitlines() if line.startswith("aud")]
    assert line.split() == ["aud", "no", "'account'", "clustercert"]
    assert "The token, from the issuer sso, would be refused by the check aud." in done.err
    assert text not in done.out + done.err


def test_the_cluster_of_a_service_account_is_asked(operator: Operator, tmp_path: Path) -> None:
    cluster = "2f6d3bd5-4a3c-4bd1-8d3c-6b1f4f6a2f10"
    operator.configure(
        f"""
[[identity.issuers]]
name = "cluster-a"
preset = "kubernetes"
issuer = "{URL}"
audiences = ["clustercert"]
cluster = "{cluster}"
domain = "Default"
"""
    )
    token = saved(tmp_path, signed(claims_of(URL), new_key("first")))
    done = operator.run("identity", "explain", "--token-file", token)
    assert (done.code, f"the cluster {cluster} is not registered" in done.out) == (1, True)
    assert "from the issuer cluster-a" in done.err


@pytest.mark.parametrize("text", ["x", "a.b.c", "a." * 40_000])
def test_what_is_no_token_is_explained(
    operator: Operator, issuer: IssuerServer, tmp_path: Path, text: str
) -> None:
    done = operator.run("identity", "explain", "--token-file", saved(tmp_path, text))
    assert done.code == 1
    assert "Error" in done.err or "refused by the check" in done.err


def test_an_issuer_that_hangs_is_explained(
    operator: Operator, issuer: IssuerServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explanation, "KEYS_SECONDS", 0.2)
    end = threading.Event()
    issuer.responses["/keys"] = Response(b"{}", work=lambda: end.wait(SECONDS))
    try:
        done = operator.run("identity", "explain", "--token-file", saved(tmp_path, issuer.token()))
    finally:
        end.set()
    assert done.code == 1
    assert "no response within" in done.out


def test_without_issuers_the_settings_are_named(operator: Operator, tmp_path: Path) -> None:
    done = operator.run("identity", "explain", "--token-file", saved(tmp_path, "a.b.c"))
    assert (done.code, "[[identity.issuers]]" in done.out) == (1, True)


def test_a_user_is_blocked_and_unblocked(operator: Operator, issuer: IssuerServer, tmp_path: Path) -> None:
    operator.output("project", "create", "eu-de")
    user_id = derived_id("user", issuer.url, "f3b1")
    token = saved(tmp_path, issuer.token())
    assert "Blocked" in operator.run("user", "block", user_id, "--yes").err
    done = operator.run("identity", "explain", "--token-file", token)
    assert (done.code, "the user is blocked" in done.out) == (1, True)
    assert "blocked already" in operator.error("user", "block", user_id, "--yes")
    operator.output("user", "unblock", user_id)
    assert operator.run("identity", "explain", "--token-file", token).code == 0
    assert "not blocked" in operator.error("user", "unblock", user_id)
    assert operator.error("user", "block", "sso/anna", "--yes").startswith("There is no user sso/anna.")


def test_a_user_of_the_built_in_identity_is_blocked_by_name(operator: Operator) -> None:
    alice = operator.output_json("user", "create", "alice", "--no-password")
    done = operator.run("user", "block", "alice", "--yes")
    assert (done.code, "Blocked the user Default/alice. Their logins have ended." in done.err) == (0, True)
    assert operator.output_json("user", "show", "alice")["enabled"] is False
    assert "blocked already" in operator.error("user", "block", alice["id"], "--yes")
    operator.output("user", "unblock", "Default/alice")
    assert operator.output_json("user", "show", "alice")["enabled"] is True
    assert "not blocked" in operator.error("user", "unblock", "alice")


def test_of_two_users_of_one_name_the_domain_chooses(operator: Operator) -> None:
    operator.output("domain", "create", "acme")
    ids = [
        operator.output_json("user", "create", "alice", "--no-password", "--domain", domain)["id"]
        for domain in ("Default", "acme")
    ]
    refused = operator.run("user", "block", "alice", "--yes")
    assert (refused.code, refused.out) == (2, "")
    said = " ".join(refused.err.split())
    assert "Several users are named alice. Write Default/alice or acme/alice." in said
    assert all(f"{each} has no valid certificates." in said for each in ids)
    assert "no user alice in the domain other" in operator.error(
        "user", "block", "alice", "--domain", "other", "--yes"
    )
    operator.output("user", "block", "alice", "--domain", "acme", "--yes")
    shown = operator.output_json("user", "list")
    assert {each["id"]: each["enabled"] for each in shown} == {ids[0]: True, ids[1]: False}


def test_all_users_of_one_name_can_be_blocked_at_once(operator: Operator) -> None:
    operator.output("domain", "create", "acme")
    for domain in ("Default", "acme"):
        operator.output("user", "create", "alice", "--no-password", "--domain", domain)
    done = operator.run("user", "block", "alice", "--all-of-this-name", "--yes")
    assert done.code == 0, done.err
    assert {each["enabled"] for each in operator.output_json("user", "list")} == {False}
