"""Names for completion: what is saved, for whom, and which names are complete."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from clustercert.cli.completion import is_plain, save_names
from clustercert.cli.credential import cache
from clustercert.cli.kubeconfig import entries
from clustercert.cli.kubeconfig.document import KubeconfigDocument
from clustercert.cli.login import profile
from clustercert.cli.login.profile import Profile
from clustercert.model import JsonObject
from clustercert.model.kubeconfigs import ClusterRef
from support.command_line import Operator
from support.wait import SECONDS

PROJECT = "a" * 32
LOGIN = Profile("https://zoo.example.com", "okapi", PROJECT, "eu-de", token="t")


def cluster(name: str, domain: str = "zoo") -> JsonObject:
    return {"name": name, "project": "eu-de", "domain": domain}


@pytest.fixture
def login(home: Path) -> Profile:
    """A login at a service that does not answer: completion asks no service."""
    del home
    profile.save("default", LOGIN, os.environ)
    return LOGIN


def completed(line: str) -> list[str]:
    """The names that the program tells a shell."""
    return [each for each in told(line) if not each.endswith(":")]


def told(line: str) -> list[str]:
    """What the program tells a shell. It ends by itself, with an empty standard error."""
    variables = {
        "_CLUSTERCERT_COMPLETE": "complete_fish",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_ARGS": line,
    }
    done = subprocess.run(
        [sys.executable, "-m", "clustercert"],
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_names_are_completed_if_a_shell_reads_them_as_text(login: Profile) -> None:
    line = "clustercert kubeconfig merge ze"
    # The scripts then complete no files instead.
    assert told(line) == ["ze:"]
    save_names("default", [cluster("zebra"), cluster("zebu"), cluster("ze$(reboot)")])
    assert completed(line) == ["zebra", "zebu"]
    assert completed("clustercert clusters --project eu") == ["eu-de"]
    for name in ("a b", "a;b", "a'b", 'a"b', "$a", "`a`", "a\\", "a\nb", "", "-rf", "a*", "~a", "a\u202eb"):
        assert not is_plain(name), name


def test_an_ambiguous_name_is_completed_to_full_names(login: Profile) -> None:
    save_names("default", [cluster("zebra"), cluster("zebra", "farm"), cluster("zebu")])
    merge, both = "clustercert kubeconfig merge", ["farm/eu-de/zebra", "zoo/eu-de/zebra"]
    assert completed(f"{merge} ") == [both[0], "zebu", both[1]]
    # The service refuses the name without a domain.
    assert completed(f"{merge} ze") == ["zebu"]
    assert completed(f"{merge} fa") == both[:1]
    assert completed(f"{merge} zoo/") == ["zoo/eu-de/zebra", "zoo/eu-de/zebu"]
    assert completed("clustercert cluster show zo") == both[1:]


def test_the_roles_of_every_service_are_completed(login: Profile) -> None:
    assert completed("clustercert role assign me") == ["member"]


@pytest.mark.parametrize(
    "line", ["kubeconfig use zoo", "kubeconfig use --kubeconfig other zoo", "kubeconfig unmerge zoo"]
)
def test_contexts_that_merge_wrote_are_completed(
    home: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.chdir(home)
    config = KubeconfigDocument(b"contexts: [{name: zoo-foreign, context: {cluster: c, user: u}}]")
    for name in ("zoo-prod", "zoo-test", "lab"):
        ref = ClusterRef("default", PROJECT, "eu-de", "zoo", "1", name, "zoo/okapi")
        entries.put(config, name, ref, {"server": "https://10.0.0.5:6443"}, {})
    (home / ".kube").mkdir()
    for file in (home / ".kube" / "config", home / "other"):
        file.write_text(config.changed_text())
    assert completed(f"clustercert {line}") == ["zoo-prod", "zoo-test"]


def test_without_a_valid_login_there_are_no_names(login: Profile, home: Path) -> None:
    line = "clustercert kubeconfig get zebr"
    save_names("default", [cluster("zebra")])
    assert completed(line) == ["zebra"]
    # A new login of the same user keeps the names.
    profile.save("default", replace(login, token="another"), os.environ)
    assert completed(line) == ["zebra"]
    profile.save("default", replace(login, token=None), os.environ)
    assert completed(line) == []
    # Names of another login are not shown.
    profile.save("default", replace(login, user="bongo"), os.environ)
    assert completed(line) == []
    (home / "config" / "clustercert" / "profiles" / "default.json").write_text("{")
    assert completed(line) == []
    (home / "config" / "clustercert" / "profiles" / "default.json").unlink()
    assert completed(line) == []


def test_logout_deletes_the_names(login: Profile, tmp_path: Path) -> None:
    save_names("default", [cluster("zebra")])
    folder = Path(str(cache.folder("names")))
    assert list(folder.iterdir())
    # Logging out with an access key asks no service.
    profile.save("default", replace(login, token=None, access_key="a", secret_key="s"), os.environ)
    assert Operator(tmp_path).run("logout").code == 0
    assert list(folder.iterdir()) == []
