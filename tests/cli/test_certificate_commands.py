"""Certificates from the command line: listed, shown, revoked, and who can still get in."""

import csv
import io
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

import world as worlds
from clustercert.certificate import fingerprint, serial_hex
from clustercert.model import utc_now
from inprocess import Service
from leaf import leaf_of, openssl
from operating import Operator
from stores import execute, rows
from world import World


@dataclass(frozen=True)
class Shell:
    """An operator at a store with certificates: `member` has three, one of them in `eip`; `admin` has one."""

    world: World
    operator: Operator
    issued: tuple[tuple[str, str, x509.Certificate], ...]

    def name(self, number: int) -> str:
        return fingerprint(self.issued[number][2]).hex()

    def names(self, *arguments: str) -> list[str]:
        return self.operator.gets("certificate", "list", *arguments, "--output", "name").split()

    def execute(self, statement: str, *values: object) -> None:
        execute(self.world.database, statement, *values)

    def events(self, kind: str) -> list[dict[str, object]]:
        found = rows(self.world.database, "SELECT body FROM audit_event WHERE kind = ? ORDER BY id", kind)
        return [json.loads(bytes(body)) for (body,) in found]  # type: ignore[call-overload] # bytes, as the column has


Issued = tuple[tuple[str, str, x509.Certificate], ...]


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Issued]:
    world = worlds.make(tmp_path_factory.mktemp("certificates"))
    issued = []
    with Service(world.settings()).running() as service:
        for who, cluster, days in (
            ("member", "plain", 30),
            ("member", "eip", 20),
            ("admin", "plain", 10),
            ("member", "plain", 2),
        ):
            headers = world.people[who].headers
            response = service.client.post(world.path(cluster), json={"duration": days}, headers=headers)
            issued.append((who, cluster, leaf_of(response.json())))
    return world, tuple(issued)


@pytest.fixture
def shell(furnished: tuple[World, Issued], tmp_path: Path) -> Shell:
    """The same store for each test, as it was at first."""
    world, issued = furnished
    folder = tmp_path / "copy"
    (folder / "data").mkdir(parents=True)
    shutil.copy(world.database, folder / "data")
    (folder / "kek").write_bytes((world.folder / "kek").read_bytes())
    (folder / "kek").chmod(0o600)
    operator = Operator(folder)
    operator.configure()
    return Shell(replace(world, folder=folder), operator, issued)


def test_lists_are_narrowed_by_what_is_said(shell: Shell) -> None:
    all_of_them = [shell.name(number) for number in (3, 2, 1, 0)]
    assert shell.names() == all_of_them
    assert shell.names("--cluster", "plain") == [shell.name(number) for number in (3, 2, 0)]
    assert shell.names("--cluster", shell.world.clusters["eip"].id) == [shell.name(1)]
    assert shell.names("--user", "admin") == [shell.name(2)]
    assert shell.names("--project", "eu-nl") == []
    assert shell.names("--expires-before", "3d") == [shell.name(3)]
    assert shell.names("--expires-after", "11d") == [shell.name(1), shell.name(0)]
    assert shell.names("--expires-before", "2020-01-01T00:00:00Z") == []
    assert shell.names("--key-origin", "csr") == []
    assert shell.names("--never-seen", "--state", "live") == all_of_them
    shell.execute("UPDATE certificate SET last_seen_at = '2026-01-01 00:00:00.000000' WHERE id = 1")
    assert shell.names("--seen-before", "1h") == [shell.name(0)]
    assert shell.names("--seen-after", "2026-01-01T00:00:00Z") == [shell.name(0)]
    assert shell.names("--seen-after", "1h") == []


def test_what_is_gone_is_found_by_its_id(shell: Shell) -> None:
    cluster, user = shell.world.clusters["eip"], shell.world.people["member"].user
    shell.operator.gets("cluster", "remove", "eip", "--yes")
    shell.operator.gets("user", "delete", "member")
    assert shell.names("--cluster", cluster.id) == [shell.name(1)]
    assert shell.names("--user", user.id) == [shell.name(number) for number in (3, 1, 0)]
    assert "no cluster eip" in shell.operator.is_refused("certificate", "list", "--cluster", "eip")
    assert shell.operator.is_refused("certificate", "list", "--user", "member")


def test_a_list_that_is_cut_short_says_so(shell: Shell) -> None:
    done = shell.operator.types("certificate", "list", "--limit", "3", "--output", "name")
    assert done.out.split() == [shell.name(number) for number in (3, 2, 1)]
    assert "--limit" in done.err
    done = shell.operator.types("certificate", "list", "--limit", "4", "--output", "csv")
    assert done.err == ""
    read = list(csv.DictReader(io.StringIO(done.out, newline="")))
    assert [row["serial"] for row in read] == [
        serial_hex(certificate) for _, _, certificate in reversed(shell.issued)
    ]


@pytest.mark.parametrize("said", ["soon", "2026-01-01T00:00:00", "999999999w"])
def test_times_that_say_nothing_are_misuse(shell: Shell, said: str) -> None:
    assert "--expires-before" in shell.operator.misuses("certificate", "list", "--expires-before", said)


def test_one_is_shown_by_any_of_its_names(shell: Shell) -> None:
    who, _, certificate = shell.issued[0]
    name = shell.name(0)
    for named in (name, name[:8], name.upper(), f"{name[:4]}:{name[4:8]}", serial_hex(certificate)):
        row = shell.operator.gets_json("certificate", "show", named)
        assert x509.load_pem_x509_certificate(row["pem"].encode()) == certificate
    assert (row["user_name"], row["state"], row["rule"]) == (who, "live", "member")
    assert "pem" not in shell.operator.gets("certificate", "show", name)
    assert shell.operator.gets("certificate", "show", name, "--output", "name") == f"{name}\n"
    assert "8 digits" in shell.operator.is_refused("certificate", "show", name[:7])
    assert "8 digits" in shell.operator.is_refused("certificate", "show", "alice")
    assert "no such certificate" in shell.operator.is_refused("certificate", "show", "00000000")


def test_a_beginning_that_several_have_is_refused(shell: Shell) -> None:
    for number in (0, 1):
        other = bytes.fromhex("abcdef01") + bytes([number]) * 28
        shell.execute("UPDATE certificate SET fingerprint = ? WHERE id = ?", other, number + 1)
    for command in ("show", "revoke"):
        assert "Several" in shell.operator.is_refused("certificate", command, "abcdef01")
    assert shell.operator.gets_json("certificate", "show", "abcdef0100")["user_name"] == "member"
    assert shell.names("--state", "revoked") == []


def test_one_certificate_is_revoked_and_good_again(shell: Shell) -> None:
    done = shell.operator.types(
        "certificate",
        "revoke",
        shell.name(0)[:8],
        "--reason",
        "superseded",
        "--note",
        "lost",
        "--output",
        "json",
    )
    made = json.loads(done.out)
    assert (made["fingerprint"], made["reason"], made["note"]) == (shell.name(0), "superseded", "lost")
    assert "nothing is set up in the cluster plain" in done.err
    assert f"clustercert certificate undo {made['id']}" in done.err
    assert shell.names("--state", "revoked") == [shell.name(0)]
    (event,) = shell.events("certificate.revoked")
    assert event["subject"] == shell.name(0)
    assert str(event["actor"]).startswith("cli:")

    shell.operator.gets("certificate", "undo", str(made["id"]))
    assert shell.names("--state", "revoked") == []
    (listed,) = shell.operator.gets_json("certificate", "revocations", "--cluster", "plain")
    assert listed["id"] == made["id"]
    assert listed["undone_at"]
    assert "undone already" in shell.operator.is_refused("certificate", "undo", str(made["id"]))


def test_what_is_revoked_for_a_compromised_key_stays_so(shell: Shell) -> None:
    done = shell.operator.types(
        "certificate", "revoke", shell.name(0), "--reason", "keyCompromise", "-o", "name"
    )
    assert "undo" not in done.err
    assert "stays revoked" in shell.operator.is_refused("certificate", "undo", done.out.strip())


def test_many_are_revoked_at_once_where_it_is_meant(shell: Shell) -> None:
    members = ("certificate", "revoke", "--user", "member")
    assert "--yes" in shell.operator.is_refused(*members, "--cluster", "plain")
    assert shell.names("--state", "revoked") == []
    shell.operator.gets(*members, "--cluster", "plain", "--yes")
    assert shell.names("--state", "revoked") == [shell.name(3), shell.name(0)]
    shell.operator.gets(*members, "--everywhere", "--yes")
    assert shell.names("--state", "revoked") == [shell.name(3), shell.name(1), shell.name(0)]
    shell.operator.gets("certificate", "revoke", "--cluster", "plain", "--yes")
    assert shell.names("--state", "live") == []
    everywhere = shell.operator.gets_json("certificate", "revocations", "--user", "member")
    assert [(each["user_id"], each["cluster_id"]) for each in everywhere] == [
        (shell.world.people["member"].user.id, None)
    ]
    assert len(shell.operator.gets_json("certificate", "revocations", "--cluster", "plain")) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--user", "member"),
        ("--everywhere",),
        ("--user", "member", "--cluster", "plain", "--everywhere"),
        ("abcdef01", "--cluster", "plain"),
        ("abcdef01", "--user", "member"),
        ("abcdef01", "--everywhere"),
    ],
)
def test_what_could_mean_more_than_one_thing_is_misuse(shell: Shell, arguments: tuple[str, ...]) -> None:
    shell.operator.misuses("certificate", "revoke", *arguments, "--yes")
    assert shell.names("--state", "revoked") == []


def test_revocations_are_of_a_cluster_or_a_user(shell: Shell) -> None:
    shell.operator.misuses("certificate", "revocations")
    shell.operator.misuses("certificate", "revocations", "--cluster", "plain", "--user", "member")


def test_who_can_still_get_in_is_told_in_words(shell: Shell) -> None:
    shell.operator.gets("certificate", "revoke", shell.name(0))
    said = shell.operator.gets("certificate", "access", "--cluster", "plain")
    lines = said.splitlines()
    assert lines[0].split() == [
        "USER", "FINGERPRINT", "STATE", "GETS-IN", "NOT-AFTER", "LAST-SEEN-AT", "GROUPS", "STOPPED-BY"
    ]  # fmt: skip
    assert [line.split()[:4] for line in lines[1:4]] == [
        ["admin", shell.name(2), "live", "yes"],
        ["member", shell.name(0), "revoked", "yes"],
        ["member", shell.name(3), "live", "yes"],
    ]
    for words in (
        "webhook (not set up)",
        "service-account token",
        "watch",
        "system:masters",
        "clustercert:admins",
    ):
        assert words in said

    assert (
        max(
            len(line)
            for line in lines[lines.index("What stops a certificate once it is revoked, and how fast:") :]
        )
        <= 100
    )

    shell.execute(
        "INSERT INTO webhook_token (id, cluster_id, hash, created_at)"
        " VALUES ('t', ?, x'00', '2026-01-01 00:00:00.000000')",
        shell.world.clusters["plain"].id,
    )
    said = " ".join(shell.operator.gets("certificate", "access", "--cluster", "plain").split())
    assert "webhook (not set up): A token exists, but the API server has never asked." in said
    assert (
        "the API server has never asked" in shell.operator.types("certificate", "revoke", shell.name(2)).err
    )
    shell.execute("UPDATE webhook_token SET last_asked_at = ?", f"{utc_now():%Y-%m-%d %H:%M:%S.%f}")
    shell.execute(
        "INSERT INTO unknown_identity (cluster_id, identity, username, groups, hashes, fingerprints, first_seen_at,"
        " last_seen_at, last_alert_at) VALUES (?, x'00', 'mallory', '[\"system:masters\"]', 1, '[\"abcd\"]',"
        " '2026-01-01 00:00:00.000000', '2026-01-01 00:00:00.000000', '2026-01-01 00:00:00.000000')",
        shell.world.clusters["plain"].id,
    )
    said = shell.operator.gets(
        "certificate", "access", "--cluster", "plain", "--group", "clustercert:editors"
    )
    assert [line.split()[1:4] for line in said.splitlines()[1:3]] == [
        [shell.name(0), "revoked", "no"],
        [shell.name(3), "live", "yes"],
    ]
    assert "mallory" not in said
    report = shell.operator.gets_json("certificate", "access", "--cluster", "plain")
    assert report["unknown_credentials"][0]["username"] == "mallory"
    assert "mallory" in shell.operator.gets("certificate", "access", "--cluster", "plain")
    names = shell.operator.gets(
        "certificate", "access", "--cluster", "plain", "--user", "admin", "-o", "name"
    )
    assert names.split() == [shell.name(2)]
    done = shell.operator.types("certificate", "revoke", shell.name(3))
    assert "set up to refuse it (webhook) within seconds, if its API server has the files" in done.err


def test_the_revocation_list_is_printed_and_holds(shell: Shell, tmp_path: Path) -> None:
    shell.operator.gets("certificate", "revoke", shell.name(0))
    pem = shell.operator.gets("certificate", "crl", "--cluster", "plain")
    (tmp_path / "crl.pem").write_text(pem)
    (tmp_path / "ca.pem").write_bytes(shell.world.client_ca("plain").public_bytes(Encoding.PEM))
    openssl("crl", "-in", tmp_path / "crl.pem", "-CAfile", tmp_path / "ca.pem", "-noout")
    listed = x509.load_pem_x509_crl(pem.encode())
    assert [revoked.serial_number for revoked in listed] == [shell.issued[0][2].serial_number]
    out = tmp_path / "out.pem"
    ca = shell.world.clusters["plain"].client_ca.id
    shell.operator.gets("certificate", "crl", "--cluster", "plain", "--ca", ca, "--out", out)
    assert x509.load_pem_x509_crl(out.read_bytes()).issuer == listed.issuer
    assert "no such client CA" in shell.operator.is_refused(
        "certificate", "crl", "--cluster", "plain", "--ca", "x"
    )
