"""The recipes of docs/recipes.md for jobs: their YAML is read, and their scripts are run against a service."""

import base64
import json
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.apiserver import ApiServer, kinds
from support.kubectl import kubectl, written
from support.page_service import Address, PageService, environment, issuer, new_service, run_script
from support.page_steps import ROOT, block

RECIPES, IDENTITY = "docs/recipes.md", "docs/identity.md"
CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "app"}, "data": {"version": "1"}}


@dataclass(frozen=True)
class Job:
    """A checkout with manifests in deploy/, and a service for its job."""

    service: PageService
    prod: ApiServer
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return environment(self.folder)

    def assert_deployed(self, group: str) -> None:
        """The job changed the cluster, as a member of this group."""
        assert self.prod.storage.get(kinds.CONFIG_MAPS, "default", "app")["data"] == CONFIG_MAP["data"]
        assert {group in seen.identity.groups for seen in self.prod.seen if seen.identity} == {True}


@pytest.fixture
def job(apiserver: ApiServer, tmp_path: Path) -> Job:
    folder, store = tmp_path / "checkout", tmp_path / "service"
    (folder / "deploy").mkdir(parents=True)
    (folder / "deploy" / "app.yaml").write_text(yaml.safe_dump(CONFIG_MAP))
    store.mkdir()
    for group in ("ci:deploy", "clustercert:editors", "clustercert:viewers"):
        apiserver.bind(group, "cluster-admin")
    return Job(new_service(store, apiserver), apiserver, folder)


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[Mapping[str, str]]:
    with issuer(tmp_path) as report:
        yield report


def settings(text: str, tokens: Mapping[str, str]) -> str:
    """The settings of a page, with the keys of the test's issuer."""
    text = re.sub("^keys_file = .*\n", "", text, flags=re.MULTILINE)
    return re.sub("^(issuer = .*)", rf'\1\nkeys_file = "{tokens["keys_file"]}"', text, flags=re.MULTILINE)


def of_job(variables: Mapping[str, Any], address: Address) -> dict[str, str]:
    """A job's variables, with the address of the test's service."""
    url, fingerprint = "SERVICE", "CA_FINGERPRINT"
    assert url in variables
    assert re.fullmatch("[0-9a-f]{64}", variables[fingerprint])
    return {**variables, url: address.url, fingerprint: address.fingerprint}


def inputs_of(given: Mapping[str, str], declared: Mapping[str, Any], address: Address) -> dict[str, str]:
    """The inputs of an action or a component, with their defaults, and the address of the test's service."""
    assert given.keys() <= declared.keys()
    assert re.fullmatch("[0-9a-f]{64}", given["ca-fingerprint"])
    inputs = {name: str(each["default"]) for name, each in declared.items() if "default" in each}
    inputs |= {**given, "url": address.url, "ca-fingerprint": address.fingerprint}
    assert inputs.keys() == declared.keys()
    return inputs


def filled_in(template: str, inputs: Mapping[str, str], pattern: str) -> str:
    filled = re.sub(pattern, lambda match: inputs[match[1]], template)
    assert "inputs." not in filled
    return filled


# A job's Python makes environments in which pip only prints its arguments. Their clustercert is the test's own.
NEW_ENVIRONMENT = """python3() {
  if [ "$1 $2" != "-m venv" ]; then command python3 "$@"; return; fi
  mkdir -p "$3/bin"
  printf '#!/bin/sh\necho pip "$@"\n' > "$3/bin/pip"
  printf '#!/bin/sh\necho from the environment >&2\nexec %s "$@"\n' "$(command -v clustercert)" > "$3/bin/clustercert"
  chmod +x "$3/bin/pip" "$3/bin/clustercert"
}
"""


def assert_installs(said: str, given: Mapping[str, str]) -> None:
    """The job installs only what has the hashes that the recipe names, and runs it."""
    options = f"--quiet --require-hashes --requirement {given['requirements']}"
    assert f"pip install {options} {given['package']}\n" in said
    assert re.fullmatch(r"https://files\.example\.com/clustercert-\S+\.whl#sha256=\S+", given["package"])
    assert "from the environment\n" in said


def test_github_actions(job: Job, tokens: Mapping[str, str], tmp_path: Path) -> None:
    workflow = yaml.safe_load(block(RECIPES, "recipe: github"))
    assert workflow["permissions"]["id-token"] == "write"
    _, getting, deploying = workflow["jobs"]["deploy"]["steps"]
    action = yaml.safe_load((ROOT / "deploy/ci/github/action.yml").read_text())
    (step,) = action["runs"]["steps"]
    job.service.configure(settings(block(IDENTITY, "identity: github"), tokens))
    with job.service.serving() as address:
        inputs = inputs_of(getting["with"], action["inputs"], address)
        names = ("GITHUB_ENV", "GITHUB_OUTPUT", "GITHUB_PATH", "RUNNER_TEMP")
        files = {name: tmp_path / name.lower() for name in names}
        files["RUNNER_TEMP"].mkdir()
        env = job.env | {name: str(path) for name, path in files.items()}
        env |= {
            name: filled_in(value, inputs, r"\$\{\{ inputs\.([\w-]+) \}\}")
            for name, value in step["env"].items()
        }
        assert "inputs." not in step["run"]
        with pytest.raises(AssertionError, match="id-token: write"):
            run_script(step["run"], job.folder, env)
        env |= {"ACTIONS_ID_TOKEN_REQUEST_URL": tokens["request_url"], "CURL_CA_BUNDLE": tokens["ca_file"]}
        env |= {"ACTIONS_ID_TOKEN_REQUEST_TOKEN": "secret-of-the-runner"}
        shows_arguments = 'curl() { echo "curl $*" >&2; command curl "$@"; }\n'
        said = run_script(NEW_ENVIRONMENT + shows_arguments + step["run"], job.folder, env)
    assert "curl --fail" in said
    assert "secret-of-the-runner" not in said
    assert_installs(said, getting["with"])
    assert [path.name for path in Path(files["GITHUB_PATH"].read_text().strip()).iterdir()] == ["clustercert"]
    variables = dict(line.split("=", 1) for line in files["GITHUB_ENV"].read_text().splitlines())
    assert files["GITHUB_OUTPUT"].read_text() == f"kubeconfig={variables['KUBECONFIG']}\n"
    masked = [
        line.removeprefix("::add-mask::") for line in said.splitlines() if line.startswith("::add-mask::")
    ]
    assert [said.count(token) for token in masked] == [1]
    run_script(deploying["run"], job.folder, job.env | variables)
    job.assert_deployed("ci:deploy")


def test_gitlab_ci(job: Job, tokens: Mapping[str, str], tmp_path: Path) -> None:
    pipeline = yaml.safe_load(block(RECIPES, "recipe: gitlab"))
    (included,) = pipeline["include"]
    template = (ROOT / "deploy/ci/gitlab/templates/kubeconfig.yml").read_text()
    header, jobs = template.split("\n---\n")
    job.service.configure(settings(block(RECIPES, "identity: gitlab"), tokens))
    with job.service.serving() as address:
        inputs = inputs_of(included["inputs"], yaml.safe_load(header)["spec"]["inputs"], address)
        base = yaml.safe_load(filled_in(jobs, inputs, r"\$\[\[ inputs\.([\w-]+) \]\]"))[
            pipeline["deploy"]["extends"]
        ]
        assert base["id_tokens"] == {"CLUSTERCERT_TOKEN": {"aud": "clustercert"}}
        builds = tmp_path / "builds"
        builds.mkdir()
        env = job.env | base["variables"] | {"CLUSTERCERT_TOKEN": tokens["gitlab"]}
        env |= {"CI_BUILDS_DIR": str(builds), "CI_JOB_ID": "42"}
        script = "\n".join([NEW_ENVIRONMENT, *base["before_script"], *pipeline["deploy"]["script"]])
        said = run_script(script, job.folder, env)
        assert_installs(said, included["inputs"])
        (private,) = builds.iterdir()
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        assert sorted(path.name for path in private.iterdir()) == ["bin", "kubeconfig", "venv"]
        with pytest.raises(AssertionError, match="File exists"):
            run_script("\n".join(base["before_script"]), job.folder, env)
    # GitLab runs after_script in a new shell, which has only the job's variables.
    run_script("\n".join(base["after_script"]), job.folder, env)
    assert list(builds.iterdir()) == []
    job.assert_deployed("ci:deploy")


@pytest.mark.parametrize("file", ["github/action.yml", "gitlab/templates/kubeconfig.yml"])
def test_jobs_install_no_package_unless_they_name_one(file: str) -> None:
    *_, declared = yaml.safe_load_all((ROOT / "deploy/ci" / file).read_text().partition("\n---\n")[0])
    inputs = declared.get("inputs") or declared["spec"]["inputs"]
    assert "default" not in inputs["package"]
    assert inputs["requirements"]["default"] == ""


def test_an_access_key(job: Job) -> None:
    job.service.apply(
        {"kind": "User", "metadata": {"name": "ci-web"}},
        {
            "kind": "RoleBinding",
            "metadata": {"name": "ci"},
            "spec": {"project": "eu-de", "role": "member", "users": ["ci-web"]},
        },
    )
    key = json.loads(job.service.run("access-key", "create", "--user", "ci-web", "--output", "json"))
    with job.service.serving() as address:
        env = job.env | {
            "SERVICE": address.url,
            "CA_FINGERPRINT": address.fingerprint,
            "ACCESS_KEY": key["access_key"],
            "CLUSTERCERT_SECRET_KEY": key["secret_key"],
        }
        said = run_script(block(RECIPES, "recipe: access-key"), job.folder, env)
    assert key["secret_key"] not in said
    job.assert_deployed("clustercert:editors")


def test_argo_cd(job: Job, tokens: Mapping[str, str], tmp_path: Path) -> None:
    cron_job = yaml.safe_load((ROOT / "deploy/argo-cd/cluster-secret.yaml").read_text())
    pod = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (volume,) = pod["volumes"]
    (source,) = volume["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == "clustercert"
    (container,) = pod["containers"]
    account = settings(block(IDENTITY, "identity: kubernetes"), tokens)
    for name, value in (("monitoring", "argocd"), ("prometheus", "clustercert"), ("cluster-b", "prod")):
        account = account.replace(f'"{name}"', f'"{value}"')
    job.service.configure(account)
    token = tmp_path / "token"
    token.write_text(tokens["service_account"])
    folder = tmp_path / "argo"
    folder.mkdir()
    with ApiServer(folder) as argo, job.service.serving() as address:
        argo.storage.create(kinds.NAMESPACES, "", {"metadata": {"name": "argocd"}})
        variables = of_job({each["name"]: each["value"] for each in container["env"]}, address)
        variables |= {
            "TOKEN_FILE": str(token),
            "HOME": str(folder),
            "KUBECONFIG": str(argo.admin_kubeconfig()),
        }
        assert container["command"] == ["sh", "-euc"]
        for _ in range(2):
            run_script(container["args"][0], folder, job.env | variables)
        secret = argo.storage.get(kinds.SECRETS, "argocd", "cluster-prod")
    assert secret["metadata"]["labels"] == {"argocd.argoproj.io/secret-type": "cluster"}
    kubeconfig = as_argo_connects(secret["stringData"])
    done = kubectl(written(tmp_path, json.dumps(kubeconfig).encode()), "get", "namespaces", "-o", "name")
    assert done.stdout.split() == ["namespace/default", "namespace/kube-system"], done.stderr


def as_argo_connects(data: Mapping[str, str]) -> dict[str, Any]:
    """A kubeconfig with what Argo CD reads from a cluster's Secret."""
    tls = json.loads(data["config"])["tlsClientConfig"]
    assert all(base64.b64decode(tls[name], validate=True) for name in ("caData", "certData", "keyData"))
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "c", "cluster": {"server": data["server"], "certificate-authority-data": tls["caData"]}}
        ],
        "users": [
            {
                "name": "u",
                "user": {"client-certificate-data": tls["certData"], "client-key-data": tls["keyData"]},
            }
        ],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    }
