"""The README's lines about revocation, run as they stand there, against the double of kube-apiserver."""

from pathlib import Path

import pytest

from support.apiserver import ApiServer
from support.installed_demo import Demo, operator, operators_environment
from support.page_service import environment
from support.page_steps import PASSWORD, Step, run, section, steps
from support.registered_cluster import register

MOST_LINES = 10
CONTROL_PLANE = "/etc/kubernetes/clustercert"


@pytest.fixture
def env(tls_demo: Demo, tmp_path: Path) -> dict[str, str]:
    """The operator's shell, in which alice is logged in too."""
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    domain = ("--domain", "demo")
    operator(tls_demo, "user", "create", "alice", "--password-file", password, *domain, "--local")
    project = tls_demo.own.project_id
    operator(
        tls_demo, "role", "assign", "member", "--user", "alice", "--project", project, *domain, "--local"
    )
    env = {
        **operators_environment(tls_demo),
        **environment(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "settings"),
        "CLUSTERCERT_SERVER__PUBLIC_URL": tls_demo.own.url,
    }
    login = f"clustercert login {tls_demo.own.url} --ca-file {tls_demo.own.tls_ca}"
    run(Step(f"{login} --user alice --domain demo --password-file {password}", ()), tmp_path, env)
    return env


def test_the_readmes_lines_on_revocation_do_what_they_say(
    tls_demo: Demo, apiserver: ApiServer, env: dict[str, str], tmp_path: Path
) -> None:
    prod = register(tls_demo, "prod", apiserver)
    prod.issue()  # by now the service knows the cluster
    env["KUBECONFIG"] = str(apiserver.admin_kubeconfig())
    files = tmp_path / "control-plane"
    words = {"/var/lib/clustercert/prod": str(files)}
    setup, *others = steps(section("README.md", "Revoke"))
    assert len(others) < MOST_LINES

    run(setup, tmp_path, env, words=words)
    # What the folder's README.md asks for, with its files where they lie here.
    configuration = files / "authorization-config.yaml"
    configuration.write_text(configuration.read_text().replace(CONTROL_PLANE, str(files)))
    apiserver.trust(prod.ca_bundle_pem)
    apiserver.authorize_with(configuration)

    for step in others:
        # The page says how long it takes where nobody else needs the processor.
        run(step, tmp_path, env, words=words | {"sleep 3;": "sleep 15;"})

    assert any("sleep 3;" in step.command for step in others)
    assert sum("Forbidden" in line for step in others for line in step.printed) == 1
