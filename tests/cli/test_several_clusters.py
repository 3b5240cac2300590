"""`clustercert kubernetes setup`, `verify` and `remove` for several clusters, and `remove` for one."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from clustercert.cli.kubernetes.selection import folder_of
from clustercert.model import Domain
from clustercert.model.identity import ProjectName
from support.command_line import CommandResult
from support.operated_cluster import OperatedCluster
from support.page_steps import new_reader, steps_below
from support.samples import cluster


@pytest.fixture
def sites(site: OperatedCluster, tmp_path: Path) -> Iterator[OperatedCluster]:
    """The cluster `prod`, and two named `test` that can't be reached, in two projects named `eu-de`."""
    add = ("--internal-url", "https://127.0.0.1:1", "--server-ca", site.cluster.server_ca)
    site.operator.output("cluster", "add", "test", "--project", "eu-de", "--label", "stage=test", *add)
    site.operator.output("domain", "create", "acme")
    other = site.operator.output_json("project", "create", "eu-de", "--domain", "acme")["id"]
    site.operator.output("cluster", "add", "test", "--project", other, "--label", "stage=test", *add)
    yield site
    site.operator.output("cluster", "remove", "test", "--domain", "Default", "--yes")
    site.operator.output("cluster", "remove", "test", "--domain", "acme", "--yes")
    site.operator.output("project", "delete", other, "--yes")
    site.operator.output("domain", "disable", "acme", "--yes")
    site.operator.output("domain", "delete", "acme", "--yes")


def set_up(site: OperatedCluster, out: Path, *chosen: str) -> CommandResult:
    options = ("--out", out, "--webhook-url", site.url, "--webhook-ca", site.ca)
    return site.operator.run("kubernetes", "setup", *chosen, *options)


def test_each_cluster_has_its_own_folder(sites: OperatedCluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = set_up(sites, out, "--all")
    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        f"{out}/Default/eu-de/prod",
        f"{out}/Default/eu-de/test",
        f"{out}/acme/eu-de/test",
    ]
    ids = {
        place: re.search(r'^cluster_id = "(.*)"$', (out / place / "setup.toml").read_text(), re.MULTILINE)
        for place in ("Default/eu-de/prod", "Default/eu-de/test", "acme/eu-de/test")
    }
    assert len({found[1] for found in ids.values() if found is not None}) == 3
    assert done.err.count("Handshake") <= 1


def test_a_domain_in_the_place_of_the_project_is_explained(sites: OperatedCluster, tmp_path: Path) -> None:
    said = set_up(sites, tmp_path / "out", "acme/test").err
    assert said == "Error: There is no project acme. Write DOMAIN/PROJECT/CLUSTER, or PROJECT/CLUSTER.\n"
    said = set_up(sites, tmp_path / "out", "test", "--project", "acme").err
    assert said == "Error: There is no project acme.\n"


def test_a_project_is_given_with_its_domain(sites: OperatedCluster, tmp_path: Path) -> None:
    here = ("--project", "acme/eu-de")
    [folder] = set_up(sites, tmp_path / "all", "--all", *here).out.splitlines()
    assert folder == f"{tmp_path}/all/acme/eu-de/test"
    done = set_up(sites, tmp_path / "one", "test", *here)
    assert done.code == 0, done.err
    shown = sites.operator.output_json("cluster", "show", "test", *here)
    assert shown["id"] in (tmp_path / "one" / "setup.toml").read_text()
    ambiguous = set_up(sites, tmp_path / "none", "test")
    assert "named test. Write Default/eu-de/test or acme/eu-de/test." in ambiguous.err
    bundle = sites.operator.output("cluster", "ca", "show", "acme/eu-de/test", "--bundle")
    assert bundle == sites.operator.output("cluster", "ca", "show", shown["id"], "--bundle")


def test_a_failure_does_not_stop_the_others(sites: OperatedCluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    blocked = out / "Default" / "eu-de"
    blocked.mkdir(parents=True)
    (blocked / "test").write_text("")
    done = set_up(sites, out, "--label", "stage=test")
    assert done.code == 1
    assert done.out == f"{out}/acme/eu-de/test\n"
    assert f"Error: Default/eu-de/test: {blocked}/test is not a folder." in done.err


def test_the_steps_of_a_removal_are_written_into_the_folders(sites: OperatedCluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    set_up(sites, out, "--all")
    (out / "acme" / "eu-de" / "test" / "setup.toml").unlink()
    done = sites.operator.run("kubernetes", "remove", "--all", "--out", out)
    assert done.code == 1
    refused = sites.operator.error("kubernetes", "remove", "--all", "--out", tmp_path / "new")
    assert refused.startswith(
        f"{tmp_path / 'new'} has no folder DOMAIN/PROJECT/CLUSTER with the setup.toml of one"
    )
    folders = [out / "Default" / "eu-de" / name for name in ("prod", "test")]
    assert done.out.splitlines() == [f"{folder}/REMOVE.md" for folder in folders]
    assert f"Error: acme/eu-de/test: {out}/acme/eu-de/test has no setup.toml." in done.err
    shown = sites.operator.output_json("cluster", "show", "prod")
    assert f"clustercert cluster remove {shown['id']}\n" in (folders[0] / "REMOVE.md").read_text()
    assert (folders[0] / "REMOVE.md").stat().st_mode & 0o777 == 0o600


def test_the_folder_of_another_cluster_gets_no_steps(sites: OperatedCluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    set_up(sites, out, "prod")
    said = sites.operator.error("kubernetes", "remove", "test", "--domain", "acme", "--out", out)
    assert "was written for another cluster" in said
    assert not (out / "REMOVE.md").exists()


def test_verify_prints_a_line_for_each_cluster(sites: OperatedCluster) -> None:
    sites.set_up()
    done = sites.operator.run(
        "kubernetes", "verify", "--all", "--project", "eu-de", "--domain", "Default", "-o", "json"
    )
    good, bad = json.loads(done.out)
    assert done.code == 1
    assert (good["cluster"], good["result"], good["detail"]) == (
        "prod",
        "ok",
        "refused, by the authorization webhook",
    )
    assert good["seconds"] > 0
    assert (bad["cluster"], bad["project"], bad["result"]) == ("test", "eu-de", "failed")
    assert bad["check"] == "authenticate"
    assert "\nDefault/eu-de/test: authenticate: " in done.err
    assert "\nDefault/eu-de/test: authenticate: The cluster's API server can't be reached." in f"\n{done.err}"
    assert "Default/eu-de/prod: Use after a revocation is not seen: the API server has sent no" in done.err
    assert "Default/eu-de/test: Use after a revocation is not seen: the cluster has no webhook" in done.err


@pytest.mark.full
def test_the_page_shows_what_verify_and_remove_print(sites: OperatedCluster, tmp_path: Path) -> None:
    page = "docs/kubernetes.md"
    sites.set_up()
    operator = new_reader(tmp_path / "home", CLUSTERCERT_CONFIG=str(sites.operator.config))
    operator.columns = 140
    operator.words |= {
        "--all": "--all --project eu-de --domain Default",
        "/var/lib/clustercert/prod": str(sites.folder),
    }
    for heading in (
        "Kubernetes: certificates that can be revoked",
        "Verify regularly",
        "Remove clustercert from a cluster",
    ):
        [found] = steps_below(page, heading)
        operator.follow_steps(found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Give the names or ids of clusters, or --all, or --label KEY=VALUE."),
        (("prod", "--all"), "Give the names or ids of clusters, or --all, or --label KEY=VALUE."),
        (("--label", "stage=none"), "No cluster matches."),
        (("--all", "--address", "https://a.example:1"), "--address is the address of one API server."),
    ],
)
def test_a_wrong_choice_is_refused(site: OperatedCluster, arguments: tuple[str, ...], message: str) -> None:
    assert message in site.operator.error("kubernetes", "verify", *arguments)


def test_the_folder_of_a_cluster_stays_below_the_given_folder() -> None:
    names = ProjectName("a/b", Domain("d", ".."), is_unique=True)
    assert folder_of(replace(cluster(), name="c", project_name=names)) == Path("%2E./a%2Fb/c")
