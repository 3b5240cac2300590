"""A job whose token gets no role, or is refused, reads which claims it has."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command_line import CommandResult, new_operator
from support.exec_plugin import add_cluster
from support.issuer_tokens import GITLAB, fresh
from support.oidc import IssuerServer
from support.operated_cluster import SERVICE_CA, tls_service
from support.remote_user import RemoteUser

_SETTINGS = """
[[identity.issuers]]
name = "gitlab"
preset = "gitlab"
issuer = "{issuer.url}"
audiences = ["clustercert"]
ca_file = "{issuer.ca_file}"
domain = "Default"
claims.namespace_id = ["72"]

[[identity.issuers.roles]]
role = "member"
claims.project_id = ["20"]
claims.ref_path = ["refs/heads/main"]

[[identity.issuers.roles]]
role = "admin"
claims.project_id = ["4711"]
claims.environment = ["secret-production"]
"""


class Jobs:
    def __init__(self, issuer: IssuerServer, url: str, ca_file: Path) -> None:
        self.issuer = issuer
        self.url = url
        self.ca_file = ca_file

    def run(self, home: Path, *arguments: str, **claims: object) -> CommandResult:
        token = self.issuer.token(**(fresh(GITLAB, iss=self.issuer.url) | claims))
        variables = {
            "CLUSTERCERT_URL": self.url,
            "CLUSTERCERT_TOKEN": token,
            "CLUSTERCERT_CA_FILE": str(self.ca_file),
        }
        return RemoteUser(home).run(*arguments, **variables)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    operator = new_operator(tmp_path_factory.mktemp("site"))
    operator.output("project", "create", "eu-de")
    with IssuerServer(operator.folder).running() as issuer:
        operator.configure(_SETTINGS.format(issuer=issuer))
        with tls_service(operator) as url:
            add_cluster(operator, "prod", operator.folder / SERVICE_CA)
            yield Jobs(issuer, url, operator.folder / SERVICE_CA)


COMMANDS = [("kubeconfig", "get", "prod", "--local-key"), ("credential", "prod"), ("clusters",)]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_job_of_the_wrong_branch_reads_which_claim_does_not_match(
    jobs: Jobs, tmp_path: Path, command: tuple[str, ...]
) -> None:
    done = jobs.run(tmp_path, *command, ref_path="refs/heads/dev", environment="staging")
    assert (done.code, done.out) == (4, "")
    said = " ".join(done.err.split())
    assert (
        "The token has project_id 20, ref_path refs/heads/dev, environment staging, and no rule in the"
        " issuer's settings gives you a role. A rule accepts other claims of the token, but not its ref_path."
    ) in said
    assert not any(
        secret in said for secret in ("4711", "secret", "refs/heads/main", "ask an operator for a role")
    )


def test_a_job_of_another_project_reads_that_no_rule_is_for_it(jobs: Jobs, tmp_path: Path) -> None:
    done = jobs.run(tmp_path, "clusters", project_id="21", environment="secret-production")
    assert done.code == 4
    assert "No rule accepts the token's project_id." in " ".join(done.err.split())


def test_a_job_with_a_role_is_not_bothered(jobs: Jobs, tmp_path: Path) -> None:
    done = jobs.run(tmp_path, "clusters", "-o", "json", ref_path="refs/heads/main")
    assert done.code == 0, done.err


def test_a_job_that_the_issuers_settings_refuse_is_not_told_that_its_audience_is_wrong(
    jobs: Jobs, tmp_path: Path
) -> None:
    done = jobs.run(tmp_path, "clusters", namespace_id="73", ref_path="refs/heads/main")
    assert done.code == 3
    said = " ".join(done.err.split())
    assert "compare the audience" not in said
    assert "The token is for the audience clustercert, and expires at 20" in said
    for claim in ("project_path my-group/my-project", "project_id 20", "namespace_id 73"):
        assert claim in said
    assert "clustercert identity explain" in said
