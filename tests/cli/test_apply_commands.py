"""`clustercert apply`, `diff` and `export`, on the store and over the API."""

import io
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from clustercert.cli.apply.documents import json_schema
from clustercert.model import rfc3339
from clustercert.pki.client_ca import new_client_ca
from clustercert.pki.keys import new_key
from support.certificate_authority import kubeconfig_document
from support.command_line import Operator, new_operator
from support.operated_cluster import SERVICE_CA
from support.samples import CA_NOT_BEFORE, server_ca_pem
from support.stores import execute, rows
from support.terminal import in_a_terminal
from support.wait import eventually

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = DOCS / "examples" / "apply.yaml"
URL = "https://10.0.0.5:6443"


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    folder = tmp_path / "store"
    folder.mkdir()
    return new_operator(folder)


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The example of the documentation, with the kubeconfig that it names."""
    shutil.copy(EXAMPLE, tmp_path)
    (tmp_path / "prod.kubeconfig").write_bytes(kubeconfig_document(URL, server_ca_pem(), b""))
    return tmp_path / EXAMPLE.name


def documents(path: Path, *values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump_all(values), encoding="utf-8")
    return path


def document(kind: str, name: str, spec: object = None, **metadata: object) -> dict[str, Any]:
    return {
        "apiVersion": "clustercert/v1",
        "kind": kind,
        "metadata": {"name": name, **metadata},
        "spec": spec or {},
    }


def cluster(name: str, project: str, **more: object) -> dict[str, Any]:
    spec = {"internal_url": URL, "server_ca": server_ca_pem().decode(), **more}
    return document("Cluster", name, spec, project=project)


def events(operator: Operator) -> list[str]:
    found = rows(operator.folder / "data" / "clustercert.db", "SELECT kind FROM audit_event ORDER BY id")
    return [str(kind) for (kind,) in found]


def test_the_example_of_the_documentation_is_applied_once(operator: Operator, example: Path) -> None:
    before = len(events(operator))
    done = operator.run("apply", "--local", "-f", example)
    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        "Project eu-de created",
        "User alice created",
        "User ci created",
        "Group developers created",
        "Group developers member alice created",
        "RoleBinding eu-de: member of User ci created",
        "RoleBinding eu-de: member of Group developers created",
        "Cluster eu-de/prod created",
    ]
    assert done.err == "8 changes applied.\n"
    assert events(operator)[before:] == [
        "project.created",
        *["user.created"] * 2,
        "group.created",
        "group.member_added",
        *["role.assigned"] * 2,
        "cluster.added",
    ]
    actors = rows(operator.folder / "data" / "clustercert.db", "SELECT DISTINCT actor FROM audit_event")
    assert all(str(actor).startswith("cli:") for (actor,) in actors)
    shown = operator.output_json("cluster", "show", "prod")
    assert (shown["internal_url"], shown["webhook_mode"]) == (URL, "known-only")

    for command in ("apply", "diff"):
        again = operator.run(command, "--local", "-f", example)
        assert (again.code, again.out, again.err) == (0, "", "Nothing to change.\n")
    assert len(events(operator)) == before + 8


def test_the_order_of_documents_does_not_matter(operator: Operator, example: Path) -> None:
    values = list(yaml.safe_load_all(example.read_text()))
    documents(example, *reversed(values))
    operator.output("apply", "--local", "-f", example)
    assert operator.output_json("project", "show", "eu-de")["description"] == "Production"


def test_diff_shows_what_apply_then_changes(operator: Operator, tmp_path: Path) -> None:
    file = documents(tmp_path / "a.yaml", document("Project", "eu-de", {"description": "one"}))
    operator.output("apply", "--local", "-f", file)
    documents(file, document("Project", "eu-de", {"description": "two"}), document("User", "alice"))
    before = len(events(operator))
    done = operator.run("diff", "--local", "-f", tmp_path)
    assert done.out == "~ Project eu-de\n    description: 'one' -> 'two'\n+ User alice\n"
    assert done.err == "2 changes.\n"
    assert operator.output_json("diff", "--local", "-f", tmp_path) == [
        {
            "action": "change",
            "object": "Project eu-de",
            "differences": {"description": {"old": "one", "new": "two"}},
        },
        {"action": "create", "object": "User alice", "differences": {}},
    ]
    assert len(events(operator)) == before
    assert (
        operator.output("apply", "--local", "-f", tmp_path) == "Project eu-de changed\nUser alice created\n"
    )


def test_a_changed_ca_is_shown_by_its_fingerprint_and_end(operator: Operator, tmp_path: Path) -> None:
    other = new_client_ca("kubernetes", new_key("ec-p256"), CA_NOT_BEFORE, timedelta(days=365))
    cas = [server_ca_pem().decode(), other.public_bytes(Encoding.PEM).decode()]
    project = document("Project", "eu-de")
    first, second = (
        documents(tmp_path / f"{number}.yaml", project, cluster("a", "eu-de", server_ca=ca))
        for number, ca in enumerate(cas)
    )
    operator.output("apply", "--local", "-f", first)
    shown = operator.run("diff", "--local", "-f", second).out
    old, new = (
        f"SHA-256 {each.fingerprint(SHA256()).hex()} (valid until {rfc3339(each.not_valid_after_utc)})"
        for each in (x509.load_pem_x509_certificate(ca.encode()) for ca in cas)
    )
    assert f"    server_ca: {old} -> {new}\n" in shown
    assert "BEGIN" not in shown


def test_an_export_is_applied_to_another_store(operator: Operator, example: Path) -> None:
    operator.output("apply", "--local", "-f", example)
    operator.output("role", "assign", "operator", "--user", "alice", "--service")
    exported = operator.output("export", "--local")
    file = example.parent / "exported.yaml"
    file.write_text(exported, encoding="utf-8")
    assert operator.run("diff", "--local", "-f", file).err == "Nothing to change.\n"
    assert "server_ca: |\n" in exported
    assert operator.output_json("diff", "--local", "-f", file) == []

    folder = example.parent / "other"
    folder.mkdir()
    other = new_operator(folder)
    other.output("apply", "--local", "-f", file)
    assert other.output("export", "--local") == exported


def test_two_domains_with_equal_names_are_exported_and_applied(operator: Operator, tmp_path: Path) -> None:
    values = [document("Domain", "acme"), document("Domain", "closed", {"enabled": False})]
    for domain in ("Default", "acme"):
        values += [
            document("Project", "eu-de", {"description": domain}, domain=domain, labels={"team": domain}),
            document("User", "alice", domain=domain),
            cluster("prod", "eu-de", version="v1.33")
            | {"metadata": {"name": "prod", "project": "eu-de", "domain": domain}},
        ]
    values += [
        document("Role", "deployer"),
        document("Group", "devs", {"members": ["alice", "Default/alice"]}, domain="acme"),
        document(
            "RoleBinding",
            "deployers",
            {
                "project": "eu-de",
                "role": "deployer",
                "users": ["Default/alice", "alice"],
                "groups": ["acme/devs"],
            },
            domain="acme",
        ),
        document("RoleBinding", "theirs", {"project": "eu-de", "role": "member", "users": ["acme/alice"]}),
        document("RoleBinding", "operators", {"service": True, "role": "operator", "users": ["acme/alice"]}),
    ]
    file = documents(tmp_path / "a.yaml", *reversed(values))
    planned = operator.run("diff", "--local", "-f", file)
    assert planned.out.splitlines() == (lines := [f"+ {title}" for title in _TWO_DOMAINS])
    assert len(lines) == len(set(lines))
    applied = operator.run("apply", "--local", "-f", file)
    assert applied.out.splitlines() == [f"{title} created" for title in _TWO_DOMAINS]
    for command in ("apply", "diff"):
        assert operator.run(command, "--local", "-f", file).err == "Nothing to change.\n"
    group = operator.output_json("role", "list", "--group", "devs")
    assert [(each["role"], each["project"]) for each in group] == [("deployer", "eu-de")]

    exported = tmp_path / "exported.yaml"
    exported.write_text(operator.output("export", "--local"), encoding="utf-8")
    assert operator.run("diff", "--local", "-f", exported).err == "Nothing to change.\n"
    ids = {each["id"] for kind in ("project", "user", "group") for each in operator.output_json(kind, "list")}
    assert not [each for each in ids if each in exported.read_text(encoding="utf-8")]
    (tmp_path / "other").mkdir()
    other = new_operator(tmp_path / "other")
    other.output("apply", "--local", "-f", exported)
    assert other.output("export", "--local") == exported.read_text(encoding="utf-8")
    shown = other.output_json("cluster", "show", "prod", "--project", "eu-de", "--domain", "acme")
    assert shown["version"] == "v1.33"


_TWO_DOMAINS = [
    "Domain closed",
    "Domain acme",
    "Project acme/eu-de",
    "Project Default/eu-de",
    "User acme/alice",
    "User Default/alice",
    "Group acme/devs",
    "Group acme/devs member alice",
    "Group acme/devs member Default/alice",
    "Role deployer",
    "RoleBinding service: operator of User acme/alice",
    "RoleBinding eu-de: member of User acme/alice",
    "RoleBinding acme/eu-de: deployer of User Default/alice",
    "RoleBinding acme/eu-de: deployer of User alice",
    "RoleBinding acme/eu-de: deployer of Group devs",
    "Cluster acme/eu-de/prod",
    "Cluster Default/eu-de/prod",
]


def test_prune_tells_domains_apart(operator: Operator, tmp_path: Path) -> None:
    labels = {"team": "web"}
    kept = [document("Domain", "acme"), document("User", "alice", labels=labels)]
    theirs = document("User", "alice", labels=labels, domain="acme")
    operator.output("apply", "--local", "-f", documents(tmp_path / "a.yaml", *kept, theirs))
    file = documents(tmp_path / "a.yaml", *kept)
    done = operator.run("apply", "--local", "-f", file, "--prune", "--selector", "team=web", "--yes")
    assert done.out.splitlines() == ["- User acme/alice", "User acme/alice deleted"]
    assert [each["domain"] for each in operator.output_json("user", "list")] == ["Default"]


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "version": (
        {"apiVersion": "v1", "kind": "User", "metadata": {"name": "a"}},
        "apiVersion must be clustercert/v1, not v1.",
    ),
    "kind": ({**document("User", "a"), "kind": "Usr"}, "RoleBinding, Cluster, not Usr."),
    "no name": ({"apiVersion": "clustercert/v1", "kind": "User", "metadata": {}}, "metadata.name is missing"),
    "field": (
        document("Project", "a", {"descriptoin": "x"}),
        "there is no field descriptoin. Known: description",
    ),
    "type": (document("Project", "a", {"enabled": "yes"}), "spec.enabled must be of type boolean"),
    "number": (cluster("a", "eu-de", version=1.33), "spec.version must be of type string"),
    "list": (document("Group", "a", {"members": [1]}), "spec.members[0] must be of type string"),
    "choice": (
        cluster("a", "eu-de", webhook_mode="off"),
        "spec.webhook_mode must be default or known-only, not off.",
    ),
    "member": (document("Group", "a", {"members": ["alise"]}), "there is no user alise. Did you mean alice?"),
    "member of a domain": (
        document("Group", "a", {"members": ["acme/alice"]}),
        "there is no user alice in the domain acme.",
    ),
    "domain": (document("User", "a", domain="acme"), "there is no domain acme"),
    "label of a binding": (
        document("RoleBinding", "a", {"service": True, "role": "operator"}, labels={"team": "web"}),
        "metadata: there is no field labels. Known: name, domain.",
    ),
    "project": (cluster("a", "eu-ed"), "there is no project eu-ed. Did you mean eu-de?"),
    "role": (
        document("RoleBinding", "a", {"project": "eu-de", "role": "memeber", "users": ["alice"]}),
        "there is no role memeber. Did you mean member?",
    ),
    "no scope": (document("RoleBinding", "a", {"role": "member"}), "give either project or service: true"),
    "address": (cluster("a", "eu-de", internal_url="http://10.0.0.1"), "not a valid API server address"),
    "CA": (cluster("a", "eu-de", server_ca="x"), "must be certificates in PEM format"),
    "no address": (document("Cluster", "a", {}, project="eu-de"), "give internal_url and server_ca"),
    "rule": (cluster("a", "Existing", credential_roles={"no": "view"}), "no rule no"),
    "name": (document("User", "a\u202eb"), "name"),
    "label": (document("User", "a", labels={"-": "x"}), "label"),
    "twice": (document("User", "alice"), "is also in"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_nothing_changes_if_one_document_is_wrong(operator: Operator, tmp_path: Path, mistake: str) -> None:
    operator.output("project", "create", "Existing")
    wrong, message = MISTAKES[mistake]
    file = documents(tmp_path / "a.yaml", document("Project", "eu-de"), document("User", "alice"), wrong)
    before = len(events(operator))
    assert message in operator.error("apply", "--local", "-f", file)
    assert len(events(operator)) == before


def test_a_later_failure_says_what_was_applied(operator: Operator, tmp_path: Path) -> None:
    """A cluster in a project that is still missing is checked by the service only when it is registered."""
    file = documents(
        tmp_path / "a.yaml",
        document("Project", "eu-de"),
        cluster("prod", "eu-de", credential_roles={"no": "view"}),
    )
    done = operator.run("apply", "--local", "-f", file)
    assert (done.code, done.out) == (1, "Project eu-de created\n")
    assert "Cluster eu-de/prod: credential_roles: The policy has no rule no." in done.err
    assert "Applied 1 of 2 changes" in done.err


def test_several_files_are_applied_together(operator: Operator, tmp_path: Path) -> None:
    group = documents(tmp_path / "group.yaml", document("Group", "devs", labels={"team": "web"}))
    user = documents(tmp_path / "user.yaml", document("User", "alice", labels={"team": "web"}))
    both = ("apply", "--local", "-f", group, "-f", user)
    assert "is also in" in operator.error(*both, "-f", user)
    operator.output(*both)
    assert operator.run(*both, "--prune", "--selector", "team=web").err == "Nothing to change.\n"


def test_members_that_are_not_listed_are_removed(operator: Operator, tmp_path: Path) -> None:
    people = [document("User", name) for name in ("alice", "bob", "carol")]
    file = documents(tmp_path / "a.yaml", *people, document("Group", "g", {"members": ["alice", "bob"]}))
    operator.output("apply", "--local", "-f", file)
    documents(file, *people, document("Group", "g", {"members": ["bob", "carol"]}))
    operator.output("apply", "--local", "-f", file)
    assert operator.output_json("group", "show", "g")["members"] == ["bob", "carol"]
    documents(file, document("Group", "g"))
    assert operator.run("apply", "--local", "-f", file).err == "Nothing to change.\n"


def test_documents_without_enabled_leave_disabled_objects_disabled(
    operator: Operator, tmp_path: Path
) -> None:
    file = documents(tmp_path / "a.yaml", document("Project", "eu-de"), document("User", "alice"))
    operator.output("apply", "--local", "-f", file)
    exported = tmp_path / "exported.yaml"
    exported.write_text(operator.output("export", "--local"), encoding="utf-8")
    for kind, name in (("project", "eu-de"), ("user", "alice")):
        operator.output(kind, "disable", name, "--yes")
    for path in (file, exported):
        assert operator.run("apply", "--local", "-f", path).err == "Nothing to change.\n"
    labelled = document("User", "alice", labels={"team": "web"})
    operator.output("apply", "--local", "-f", documents(file, labelled))
    shown = operator.output_json("user", "show", "alice")
    assert (shown["labels"], shown["enabled"]) == ({"team": "web"}, False)
    enabled = [document("Project", "eu-de", {"enabled": True}), document("User", "alice", {"enabled": True})]
    assert operator.output("apply", "--local", "-f", documents(file, *enabled)).count("changed") == 2
    assert operator.output_json("project", "show", "eu-de")["enabled"] is True


def test_prune_deletes_what_has_the_label_and_no_document(operator: Operator, tmp_path: Path) -> None:
    labels = {"team": "web"}
    values = [
        document("Project", "p", labels=labels),
        document("Project", "old", labels=labels),
        document("Project", "theirs", labels={"team": "db"}),
        document("User", "gone", labels=labels),
        document("User", "kept"),
        document("Group", "g", labels=labels),
        cluster("c", "old") | {"metadata": {"name": "c", "project": "old", "labels": labels}},
    ]
    file = documents(tmp_path / "a.yaml", *values)
    operator.output("apply", "--local", "-f", file)
    documents(file, values[0])
    planned = operator.run("diff", "--local", "-f", file, "--prune", "--selector", "team=web")
    assert planned.out.splitlines() == ["- Cluster old/c", "- Group g", "- User gone", "- Project old"]
    refused = operator.run("apply", "--local", "-f", file, "--prune", "--selector", "team=web")
    assert refused.code != 0
    assert "Delete these 4 objects?" in refused.err
    done = operator.run("apply", "--local", "-f", file, "--prune", "--selector", "team=web", "--yes")
    assert done.code == 0, done.err
    assert "Project old deleted" in done.out
    left = {row["name"] for row in operator.output_json("project", "list")}
    assert left == {"p", "theirs"}
    assert [row["name"] for row in operator.output_json("user", "list")] == ["kept"]
    for command in ("apply", "diff"):
        for options in (["--prune"], ["--selector", "team=web"]):
            message = operator.usage_error(command, "--local", "-f", file, *options)
            assert "Give --prune and --selector together." in message


def test_prune_of_one_object_asks_for_one(operator: Operator, tmp_path: Path) -> None:
    user = document("User", "gone", labels={"team": "web"})
    file = documents(tmp_path / "a.yaml", document("Project", "p"), user)
    operator.output("apply", "--local", "-f", file)
    documents(file, document("Project", "p"))
    refused = operator.run("apply", "--local", "-f", file, "--prune", "--selector", "team=web")
    assert (refused.code, "Delete this object?" in refused.err) == (2, True)


@pytest.mark.full
def test_prune_leaves_an_object_whose_label_goes_while_it_asks(operator: Operator, tmp_path: Path) -> None:
    labels = {"team": "web"}
    values = document("Group", "gone", labels=labels), document("User", "kept", labels=labels)
    file = documents(tmp_path / "a.yaml", document("Project", "p"), *values)
    operator.output("apply", "--local", "-f", file)
    documents(file, document("Project", "p"))

    def remove_label() -> str:
        operator.output("apply", "--local", "-f", documents(tmp_path / "b.yaml", document("User", "kept")))
        return "y\n"

    command = (
        "--config",
        str(operator.config),
        "apply",
        "--local",
        "-f",
        str(file),
        "--prune",
        "--selector",
        "team=web",
    )
    code, screen = in_a_terminal(command, {"[y/N]": remove_label}, os.environ)

    assert code == 1
    said = " ".join(screen.split())
    assert (
        "User kept: The object was changed meanwhile, so it was not deleted. Applied 1 of 2 changes" in said
    )
    assert operator.output_json("group", "list") == []
    assert [row["name"] for row in operator.output_json("user", "list")] == ["kept"]


def test_messages_about_standard_input_say_so(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    for content, said in (
        ("{kind: Usr}", "standard input, document 1: "),
        ("a: [", "standard input is not valid YAML"),
        ("", "standard input has no documents."),
    ):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
        done = operator.run("apply", "--local", "-f", "-")
        assert done.code == 1
        assert said in done.err


@pytest.mark.full
def test_fifty_clusters_twenty_users_and_three_groups(operator: Operator, tmp_path: Path) -> None:
    users = [document("User", f"user-{number}") for number in range(20)]
    groups = [
        document("Group", f"group-{number}", {"members": [f"user-{each}" for each in range(number, 20, 3)]})
        for number in range(3)
    ]
    clusters = [cluster(f"cluster-{number}", "eu-de") for number in range(50)]
    bindings = [
        document(
            "RoleBinding",
            f"b-{number}",
            {"project": "eu-de", "role": "member", "groups": [f"group-{number}"]},
        )
        for number in range(3)
    ]
    file = documents(tmp_path / "a.yaml", *clusters, *bindings, *groups, *users, document("Project", "eu-de"))
    operator.output("apply", "--local", "-f", file)
    assert len(operator.output_json("cluster", "list")) == 50
    assert operator.run("apply", "--local", "-f", file).err == "Nothing to change.\n"


@pytest.fixture
def over_api(made: tuple[Operator, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Operator]:
    """The command line without access to the store of a service, with the login of one of its operators."""
    operator, url = made
    name = "root-of-apply"
    if name not in {row["name"] for row in operator.output_json("user", "list")}:
        operator.output("user", "create", name, "--no-password")
        operator.output("role", "assign", "operator", "--user", name, "--service")
        operator.output("role", "assign", "reader", "--user", name, "--project", "eu-de")
    key = operator.output_json("access-key", "create", "--user", name)
    environment = {
        "OS_AUTH_URL": url,
        "OS_ACCESS_KEY": key["access_key"],
        "OS_SECRET_KEY": key["secret_key"],
        "OS_PROJECT_NAME": "eu-de",
        "OS_CACERT": str(operator.folder / SERVICE_CA),
        # No saved login.
        "XDG_CONFIG_HOME": str(operator.folder / "config"),
    }
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    yield operator
    operator.output("access-key", "delete", key["access_key"], "--yes")


def test_documents_are_applied_over_the_api(over_api: Operator, example: Path) -> None:
    text = example.read_text().replace("eu-de", "over-api").replace("team: web", "team: over-api")
    # Other tests on this service have a cluster of the example's name.
    text = text.replace("name: prod\n", "name: over-api\n").replace("name: prod,", "name: over-api,")
    assert "name: over-api" in text
    example.write_text(text, encoding="utf-8")
    done = over_api.run("apply", "-f", example)
    assert done.code == 0, done.err
    assert done.err.endswith("\n8 changes applied.\n")
    assert over_api.run("diff", "-f", example).err.endswith("\nNothing to change.\n")
    assert "name: over-api\n" in over_api.output("export")
    actors = rows(
        over_api.folder / "data" / "clustercert.db",
        "SELECT actor FROM audit_event WHERE kind = 'cluster.added' ORDER BY id DESC LIMIT 1",
    )
    assert not str(actors[0][0]).startswith("cli:")
    # Other tests set up all clusters of this service.
    over_api.output("cluster", "remove", "over-api", "--project", "over-api", "--yes")


def test_only_operators_may_apply(over_api: Operator, tmp_path: Path) -> None:
    over_api.output("role", "unassign", "operator", "--user", "root-of-apply", "--service")
    try:
        numbers = itertools.count()

        def refused() -> str:
            labels = {"try": str(next(numbers))}
            file = documents(tmp_path / "a.yaml", document("User", "mallory", labels=labels))
            done = over_api.run("apply", "-f", file)
            return done.err if done.code else ""

        # The service remembers the role for up to a second.
        assert "Only operators can do this." in eventually(refused)
    finally:
        over_api.output("role", "assign", "operator", "--user", "root-of-apply", "--service")


def test_the_page_shows_the_end_of_the_example() -> None:
    page, example = (path.read_text(encoding="utf-8") for path in (DOCS / "administration.md", EXAMPLE))
    shown = page.split("```yaml\n")[1].split("```")[0]
    assert example.endswith(shown)


def test_the_schema_for_editors_is_up_to_date() -> None:
    committed = json.loads((DOCS / "apply.schema.json").read_text(encoding="utf-8"))
    assert committed == json_schema()


def test_a_cluster_is_added_from_a_kubeconfig_on_standard_input(
    operator: Operator, monkeypatch: pytest.MonkeyPatch, example: Path
) -> None:
    operator.output("project", "create", "eu-de")
    with (example.parent / "prod.kubeconfig").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        operator.output("cluster", "add", "prod", "--project", "eu-de", "--from-kubeconfig", "-")
    assert operator.output_json("cluster", "show", "prod")["internal_url"] == URL


def test_a_changed_signer_starts_a_rotation(operator: Operator, tmp_path: Path) -> None:
    operator.output("project", "create", "eu-de")
    without = documents(tmp_path / "without.yaml", cluster("prod", "eu-de"))
    operator.output("apply", "--local", "-f", without)
    # As if another signer than the built-in one, which needs no set-up, had the key.
    execute(operator.folder / "data" / "clustercert.db", "UPDATE cluster SET signer = 'pkcs11'")
    assert operator.run("apply", "--local", "-f", without).out == ""
    named = documents(tmp_path / "named.yaml", cluster("prod", "eu-de", signer="local", version="v1.33"))
    shown = operator.output("diff", "--local", "-f", named)
    assert "~ Cluster eu-de/prod client CA\n    signer: 'pkcs11' -> 'local'\n" in shown
    assert operator.output("apply", "--local", "-f", named).splitlines() == [
        "Cluster eu-de/prod changed",
        "Cluster eu-de/prod client CA rotation started",
    ]
    rotation = operator.output_json("cluster", "ca", "status", "prod")
    assert (rotation["state"], rotation["new_ca"]["signer"]) == ("planned", "local")
    assert operator.run("apply", "--local", "-f", named).out == ""
    other = documents(tmp_path / "other.yaml", cluster("prod", "eu-de", signer="pkcs11"))
    assert "A rotation of the cluster's client CA is running" in operator.error(
        "diff", "--local", "-f", other
    )
