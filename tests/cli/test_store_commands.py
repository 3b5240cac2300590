"""`clustercert db`, `keys` and `cluster`, and the settings."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from clustercert.cli.options import UNAVAILABLE
from clustercert.pki.certificates import chain_pem, fingerprint
from clustercert.pki.client_ca import new_client_ca
from clustercert.pki.keys import new_key
from clustercert.store.engine import migrate
from support.command_line import CommandResult, Operator
from support.small_disk import small_disk
from support.stores import execute, rows


@pytest.fixture
def server_ca(operator: Operator, tmp_path: Path) -> Path:
    """A CA certificate."""
    ca = new_client_ca("kubernetes", new_key("ec-p256"), datetime.now(UTC), timedelta(days=1))
    path = tmp_path / "server-ca.pem"
    path.write_bytes(chain_pem((ca,)))
    return path


def add(operator: Operator, server_ca: Path, name: str = "prod", *more: str) -> dict[str, object]:
    operator.run("project", "create", "eu-de")
    url = "https://10.0.0.5:6443"
    added: dict[str, object] = operator.output_json(
        "cluster", "add", name, "--project", "eu-de", "--internal-url", url, "--server-ca", server_ca, *more
    )
    return added


def test_only_the_owner_can_read_the_files(operator: Operator) -> None:
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in (
            operator.folder / "kek",
            operator.folder / "data",
            operator.folder / "data" / "clustercert.db",
        )
    }
    assert modes == {"kek": 0o600, "data": 0o700, "clustercert.db": 0o600}


def test_a_key_file_is_never_overwritten(operator: Operator) -> None:
    before = (operator.folder / "kek").read_bytes()
    kek = operator.folder / "kek"
    assert "exists" in operator.error("keys", "generate", "--out", kek)
    assert kek.read_bytes() == before


def test_a_new_key_file_that_the_settings_name_needs_no_setting(operator: Operator) -> None:
    kek = operator.folder / "kek"
    kek.unlink()
    named = operator.run("keys", "generate", "--out", kek).err
    other = operator.run("keys", "generate", "--out", operator.folder / "other").err
    assert ("The settings name this file in kek_file." in named, "Set kek_file" in named) == (True, False)
    assert f'Set kek_file = "{operator.folder / "other"}"' in other


def test_upgrading_twice_changes_nothing(operator: Operator) -> None:
    before = operator.output_json("domain", "list"), operator.output_json("keys", "list")
    operator.output("db", "upgrade")
    assert (operator.output_json("domain", "list"), operator.output_json("keys", "list")) == before
    assert f"schema ({migrate.head()}) and the keys are valid" in operator.run("db", "check").err


def test_the_schema_is_created_without_a_key_and_the_rest_with_it(operator: Operator, tmp_path: Path) -> None:
    """As a pod that serves only the webhook does it, which may start before the others."""
    data, kek, away = tmp_path / "new", operator.folder / "kek", operator.folder / "away"
    kek.rename(away)
    assert "kek" in operator.error("--data-dir", data, "db", "upgrade")
    operator.output("--data-dir", data, "db", "upgrade", "--schema-only")
    assert rows(data / "clustercert.db", "SELECT version_num FROM alembic_version") == [(migrate.head(),)]
    away.rename(kek)
    assert "Created the domain Default." in operator.run("--data-dir", data, "db", "upgrade").err
    operator.output("--data-dir", data, "db", "check")


def test_commands_do_not_create_a_missing_database(operator: Operator, tmp_path: Path) -> None:
    for command in (("db", "check"), ("user", "list", "--local"), ("serve",)):
        said = operator.error("--data-dir", tmp_path / "elsewhere", *command)
        assert "clustercert db upgrade" in said
    assert not (tmp_path / "elsewhere").exists()


def test_an_older_schema_says_what_to_do(operator: Operator) -> None:
    execute(operator.folder / "data" / "clustercert.db", "DELETE FROM alembic_version")
    assert "clustercert db upgrade" in operator.error("user", "list")
    assert "clustercert db upgrade" in operator.error("db", "check")


@pytest.mark.parametrize("command", [("db", "check"), ("db", "upgrade"), ("serve",)])
def test_a_file_that_is_no_database_is_named_with_its_remedy(
    operator: Operator, command: tuple[str, ...]
) -> None:
    file = operator.folder / "data" / "clustercert.db"
    for path in file.parent.glob("clustercert.db*"):
        path.unlink()
    file.write_bytes(b"This is a letter." * 1000)
    said = operator.error(*command)
    assert said.startswith(f"The file {file} is not an SQLite database, or it is damaged. Stop the service")
    assert "Try again" not in said


@pytest.mark.parametrize("free", [0, 4096])
def test_creating_a_database_on_a_full_disk_says_so(operator: Operator, tmp_path: Path, free: int) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        (disk / "filler").write_bytes(bytes(64 * 1024 - free))
        operator.configure(f"database_url = 'sqlite+aiosqlite:///{disk / 'clustercert.db'}'")
        done = operator.run("db", "upgrade")
    assert (done.code, done.err) == (
        UNAVAILABLE,
        "Error: The database's disk is full. Ask the operator to free space.\n",
    )


def test_a_wrong_or_missing_key_stops_every_command(operator: Operator) -> None:
    kek = operator.folder / "kek"
    kek.rename(operator.folder / "right")
    assert "kek" in operator.error("db", "check")
    operator.output("keys", "generate", "--out", kek)
    assert "\n" not in operator.error("user", "list")
    kek.chmod(0o644)
    assert "chmod 600" in operator.error("user", "list")


def test_keys_are_rotated_and_retired(operator: Operator) -> None:
    operator.output("user", "create", "alice", "--no-password")
    operator.output("access-key", "create", "--user", "alice")
    (old, first) = operator.output_json("keys", "list")

    rotated = operator.output_json("keys", "rotate")
    assert (rotated["added"], rotated["rewrapped"]) == (rotated["ids"], 1)
    resealed = operator.output_json("keys", "rotate", "--data-key")
    assert (resealed["id"], resealed["resealed"], resealed["damaged"]) == ("2", 2, [])
    assert operator.output_json("keys", "retire", "--yes") == [{"id": old["id"]}]

    listed = operator.output_json("keys", "list")
    assert [(key["kind"], key["id"], key["active"]) for key in listed] == [
        ("key-encryption", rotated["ids"][0], True),
        ("data", first["id"], False),
        ("data", "2", True),
    ]
    checked = operator.run("db", "check")
    assert checked.code == 0
    source = f"the file {operator.folder / 'kek'}"
    assert [line for line in checked.err.splitlines() if line.startswith("Key-encryption key")] == [
        f"Key-encryption key {rotated['ids'][0]}, {source}: wraps data keys 1, 2; can be used."
    ]


def test_rotation_names_damaged_secrets(operator: Operator) -> None:
    operator.output("user", "create", "alice", "--no-password")
    key = operator.output_json("access-key", "create", "--user", "alice")["access_key"]
    database = operator.folder / "data" / "clustercert.db"
    execute(database, "UPDATE access_key SET sealed_secret = substr(sealed_secret, 1, 20)")

    done = operator.run("keys", "rotate", "--data-key", "--output", "json")

    assert f"access_key:{key}" in done.out
    assert "No key decrypts" in done.err


def test_retiring_keys_and_removing_clusters_need_confirmation(operator: Operator, server_ca: Path) -> None:
    cluster = add(operator, server_ca)
    old = operator.output_json("keys", "list")[0]["id"]
    operator.output("keys", "rotate")
    refused = operator.error("keys", "retire")
    assert old in refused
    assert "--yes" in refused
    refused = operator.error("cluster", "remove", "prod")
    assert f"the cluster prod ({cluster['id']}), which has 0 live certificates" in refused
    assert "--yes" in refused
    assert "no cluster dev" in operator.error("cluster", "remove", "dev")
    assert operator.output("cluster", "list", "-o", "name") == "Default/eu-de/prod\n"
    assert operator.output("cluster", "show", "Default/eu-de/prod", "-o", "name") == "Default/eu-de/prod\n"


def test_a_cluster_is_added_shown_changed_and_removed(operator: Operator, server_ca: Path) -> None:
    added = add(
        operator,
        server_ca,
        "prod",
        "--label",
        "env=prod",
        "--label",
        "team=a",
        "--san-url",
        "https://k:1",
        "--api-server",
        "https://k:2",
        "--api-server",
        "https://k:3",
    )

    shown = operator.output_json("cluster", "show", str(added["id"]))
    seen = {"enforcement": "none", "webhook_called_at": None, "use_after_revocation": "not seen"}
    assert shown == added | seen
    assert (added["labels"], added["san_urls"]) == ({"env": "prod", "team": "a"}, ["https://k:1"])
    assert added["api_servers"] == ["https://k:2", "https://k:3"]
    changed = operator.output_json(
        "cluster", "update", "prod", "--project", "eu-de", "--rename", "live", "--external-url", "https://203.0.113.1:6443",
        "--no-san-urls", "--no-api-servers", "--label", "env=live", "--remove-label", "team", "--version", "v1.33",
    )  # fmt: skip
    expected = {
        "name": "live",
        "external_url": "https://203.0.113.1:6443",
        "san_urls": [],
        "api_servers": [],
        "labels": {"env": "live"},
        "version": "v1.33",
    }
    assert changed == added | expected | {"updated_at": changed["updated_at"]}
    assert operator.output_json("cluster", "update", "live", "--no-external-url")["external_url"] is None
    done = operator.run("cluster", "remove", "live", "--yes")
    assert "--client-ca-file" in done.err
    assert operator.output_json("cluster", "list", "--project", "eu-de") == []


def test_clusters_whose_api_servers_never_asked_the_webhook_are_listed(
    operator: Operator, server_ca: Path
) -> None:
    asked, silent = add(operator, server_ca, "asked"), add(operator, server_ca, "silent")
    add(operator, server_ca, "new")
    for each in (asked, silent):
        operator.output("kubernetes", "token", "create", str(each["id"]))
    database = operator.folder / "data" / "clustercert.db"
    execute(
        database, f"UPDATE webhook_token SET last_asked_at = created_at WHERE cluster_id = '{asked['id']}'"
    )
    [header, line] = operator.output("cluster", "list", "--without-reviews", "-o", "csv").splitlines()
    shown = dict(zip(header.split(","), line.split(","), strict=True))
    assert (shown["name"], shown["webhook_called_at"], shown["id"]) == ("silent", "", silent["id"])


def test_a_cluster_has_no_version_until_it_is_given(operator: Operator, server_ca: Path) -> None:
    assert add(operator, server_ca)["version"] == ""
    assert operator.output_json("cluster", "list")[0]["version"] == ""
    [header, line] = operator.output("cluster", "list", "-o", "csv").splitlines()
    assert dict(zip(header.split(","), line.split(","), strict=True))["version"] == ""
    changed = operator.output_json("cluster", "update", "prod", "--version", "v1.33")
    assert changed["version"] == "v1.33"


def test_adding_a_cluster_says_what_comes_next(operator: Operator, server_ca: Path) -> None:
    operator.output("project", "create", "eu-de")
    done: CommandResult = operator.run(
        "cluster",
        "add",
        "prod",
        "--project",
        "eu-de",
        "--internal-url",
        "https://k:6443",
        "--server-ca",
        server_ca,
    )
    assert "DIR/client-ca.pem" in done.err
    assert "add --distribution" in done.err
    assert "DIR/rbac.yaml" in done.err


def test_the_printed_bundle_is_the_clusters_client_ca(operator: Operator, server_ca: Path) -> None:
    added = add(operator, server_ca)
    bundle = operator.output("cluster", "ca", "show", "prod", "--bundle")
    (ca,) = x509.load_pem_x509_certificates(bundle.encode())
    ((der,),) = rows(operator.folder / "data" / "clustercert.db", "SELECT certificate_der FROM client_ca")
    assert ca == x509.load_der_x509_certificate(bytes(der))  # type: ignore[call-overload] # a BLOB
    assert str(added["id"]) in ca.subject.rfc4514_string()
    assert added["client_ca_sha256"] == fingerprint(ca).hex()
    trusted = x509.load_pem_x509_certificates(server_ca.read_bytes())
    assert added["server_ca_sha256"] == [fingerprint(each).hex() for each in trusted]


def test_no_cluster_is_named_like_an_id(operator: Operator, server_ca: Path) -> None:
    name = "0a1b2c3d-0a1b-4c3d-8a1b-0a1b2c3d4e5f"
    url = "https://10.0.0.5:6443"
    options = ("--project", "eu-de", "--internal-url", url, "--server-ca", server_ca)
    add(operator, server_ca)
    assert "looks like an id" in operator.error("cluster", "add", name, *options)
    assert "looks like an id" in operator.error("cluster", "update", "prod", "--rename", name)


def test_an_ambiguous_cluster_name_requires_the_project(operator: Operator, server_ca: Path) -> None:
    add(operator, server_ca)
    operator.output("project", "create", "other")
    options = ("--internal-url", "https://k:6443", "--server-ca", server_ca)
    theirs = operator.output_json("cluster", "add", "prod", "--project", "other", *options)
    assert "Write Default/eu-de/prod or Default/other/prod." in operator.error("cluster", "show", "prod")
    assert operator.output_json("cluster", "show", "prod", "--project", "other")["id"] == theirs["id"]
    assert operator.error("cluster", "show", "nope") == (
        "There is no cluster nope. `clustercert cluster list` lists the clusters."
    )
    assert "in the project other" in operator.error("cluster", "show", "nope", "--project", "other")


@pytest.mark.parametrize(
    ("options", "explanation"),
    [
        ((), "Give --internal-url and --server-ca, or --from-kubeconfig."),
        (("--internal-url", "https://k:6443"), "Give --internal-url and --server-ca, or --from-kubeconfig."),
        (
            ("--context", "c", "--internal-url", "https://k:6443"),
            "--context and --follow-files require --from-kubeconfig.",
        ),
        (
            ("--internal-url", "https://k:6443", "--server-ca", "CA", "--label", "novalue"),
            "Invalid value for --label: 'novalue' is not of the form KEY=VALUE.",
        ),
    ],
)
def test_wrong_usage_of_add_is_explained(
    operator: Operator, server_ca: Path, options: tuple[str, ...], explanation: str
) -> None:
    operator.output("project", "create", "eu-de")
    given = [str(server_ca) if option == "CA" else option for option in options]
    assert explanation in operator.usage_error("cluster", "add", "prod", "--project", "eu-de", *given)


@pytest.mark.parametrize(
    "url", ["http://k:6443", "https://u:p@k", "https://k/?q", "ftp://k", "https://\x1b[31m"]
)
def test_an_invalid_address_is_refused(operator: Operator, server_ca: Path, url: str) -> None:
    operator.output("project", "create", "eu-de")
    said = operator.error(
        "cluster", "add", "prod", "--project", "eu-de", "--internal-url", url, "--server-ca", server_ca
    )
    assert "https://10.0.0.5:6443" in said
    assert said.isprintable()


def test_a_cluster_is_imported_from_a_kubeconfig(operator: Operator, server_ca: Path, tmp_path: Path) -> None:
    operator.output("project", "create", "eu-de")
    kubeconfig = tmp_path / "kubeconfig"
    document = {
        "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [
            {
                "name": "c",
                "cluster": {
                    "server": "https://k:6443/",
                    "certificate-authority": server_ca.name,
                    "proxy-url": "http://p",
                },
            }
        ],
        "users": [{"name": "u", "user": {"exec": {"command": "/bin/false"}}}],
    }
    kubeconfig.write_text(yaml.safe_dump(document))
    command = ("cluster", "add", "prod", "--project", "eu-de", "--from-kubeconfig", kubeconfig)

    assert "--follow-files" in operator.error(*command)
    done = operator.run(*command, "--follow-files", "-o", "json")

    assert done.code == 0, done.err
    assert yaml.safe_load(done.out)["internal_url"] == "https://k:6443"
    assert "proxy-url" in done.err


def test_serve_refuses_a_demos_folder(operator: Operator, tmp_path: Path) -> None:
    (tmp_path / "data" / "demo.json").write_text("{}")
    assert "belongs to a demo" in operator.error("serve")


def test_wrong_settings_are_named(operator: Operator) -> None:
    operator.configure("prot = 1\n")
    assert "prot" in operator.run("user", "list").err
