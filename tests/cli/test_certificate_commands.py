"""`clustercert certificate`: list, show, revoke and access."""

import csv
import io
import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography import x509

from clustercert.cli.certificate import command as certificate_commands
from clustercert.client import connection
from clustercert.model import utc_now
from clustercert.pki.certificates import fingerprint
from clustercert.pki.leaf import serial_hex
from support import world as worlds
from support.command_line import Operator
from support.leaf_checks import leaf_of
from support.service import Service
from support.stores import execute, rows
from support.world import World


@dataclass(frozen=True)
class Shell:
    """An operator at a store with certificates: `member` has three, one of them in `eip`; `admin` has one."""

    world: World
    operator: Operator
    issued: tuple[tuple[str, str, x509.Certificate], ...]

    def name(self, number: int) -> str:
        return fingerprint(self.issued[number][2]).hex()

    def names(self, *arguments: str) -> list[str]:
        return self.operator.output("certificate", "list", *arguments, "--output", "name").split()

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
    """A fresh copy of the same store for each test."""
    world, issued = furnished
    folder = tmp_path / "copy"
    (folder / "data").mkdir(parents=True)
    shutil.copy(world.database, folder / "data")
    (folder / "kek").write_bytes((world.folder / "kek").read_bytes())
    (folder / "kek").chmod(0o600)
    operator = Operator(folder)
    operator.configure()
    return Shell(replace(world, folder=folder), operator, issued)


def test_options_filter_the_list(shell: Shell) -> None:
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


def test_removed_clusters_and_users_are_named_by_id(shell: Shell) -> None:
    cluster, user = shell.world.clusters["eip"], shell.world.people["member"].user
    shell.operator.output("cluster", "remove", "eip", "--yes")
    shell.operator.output("user", "delete", "member", "--yes")
    assert shell.names("--cluster", cluster.id) == [shell.name(1)]
    assert shell.names("--user", user.id) == [shell.name(number) for number in (3, 1, 0)]
    assert "no cluster eip" in shell.operator.error("certificate", "list", "--cluster", "eip")
    assert shell.names("--user", "member") == [shell.name(number) for number in (3, 1, 0)]
    assert "a user mmber" in shell.operator.error("certificate", "list", "--user", "mmber")


def test_a_name_of_one_user_in_certificates_of_another_revokes_nothing(shell: Shell) -> None:
    member, admin = (shell.world.people[who].user.id for who in ("member", "admin"))
    shell.execute("INSERT INTO username (name, user_id) VALUES ('member', ?), ('boss', ?)", admin, admin)
    error = shell.operator.error("certificate", "revoke", "--user", "member", "--everywhere", "--yes")
    error = " ".join(error.split())
    assert error.startswith("Several users are named member. Write tests/admin or tests/member. ")
    # What the operator needs to choose: the certificates of each.
    for user_id, count in ((member, "3 valid certificates"), (admin, "1 valid certificate")):
        assert f"{user_id} has {count}, the last one issued at 20" in error
    assert shell.names("--state", "revoked") == []
    shell.operator.output("certificate", "revoke", "--user", "boss", "--everywhere", "--yes")
    assert shell.names("--state", "revoked") == [shell.name(2)]
    shell.operator.output("certificate", "revoke", "--user", member, "--everywhere", "--yes")
    assert shell.names("--state", "live") == []


@pytest.fixture
def namesake(shell: Shell) -> str:
    """The id of a user `globex/member`, who owns the newest certificate for the cluster `plain`."""
    shell.operator.output("domain", "create", "globex")
    shell.operator.output("user", "create", "member", "--domain", "globex", "--no-password")
    user_id = str(shell.operator.output_json("user", "show", "globex/member")["id"])
    shell.execute("UPDATE certificate SET user_id = ? WHERE id = 4", user_id)
    return user_id


def test_a_user_is_named_with_the_domain(shell: Shell, namesake: str) -> None:
    assert shell.names("--user", "globex/member") == [shell.name(3)]
    assert shell.names("--user", "tests/member") == [shell.name(1), shell.name(0)]
    at_plain = ("--cluster", "tests/eu-de/plain", "--user")
    report = shell.operator.output_json("certificate", "access", *at_plain, "globex/member")
    assert [each["user_id"] for each in report["users"]] == [namesake]
    shell.operator.output("certificate", "revoke", *at_plain, "globex/member", "--yes")
    assert shell.names("--state", "revoked") == [shell.name(3)]


def test_lists_show_the_domains_of_users_with_the_same_name(shell: Shell, namesake: str) -> None:
    def users(*command: str) -> list[str]:
        heading, *lines = shell.operator.output("certificate", *command).split("\n\n")[0].splitlines()
        place = next(i for i, name in enumerate(heading.split()) if name in {"USER", "USER-NAME"})
        return sorted(line.split()[place] for line in lines)

    both = ["globex/member", "tests/member", "tests/member"]
    assert users("list", "--user", "member") == both
    assert users("list", "--user", "tests/member") == ["tests/member", "tests/member"]
    assert users("list", "--user", "tests/member", "-o", "wide") == ["tests/member", "tests/member"]
    assert users("access", "--cluster", "plain") == ["globex/member", "tests/admin", "tests/member"]
    (shown,) = shell.operator.output_json("certificate", "list", "--user", "globex/member")
    assert (shown["user_domain"], shown["project_domain"]) == ("globex", "tests")
    # The domain of a deleted user is unknown.
    shell.operator.output("user", "delete", "globex/member", "--yes")
    assert users("list", "--user", "member") == ["member", "tests/member", "tests/member"]


def test_users_with_the_same_name_are_told_apart_by_domain(shell: Shell, namesake: str) -> None:
    for command in ("revoke", "access"):
        error = shell.operator.error("certificate", command, "--user", "member", "--cluster", "plain")
        assert error.startswith("Several users are named member. Write globex/member or tests/member.")
    # The domain of a deleted user is unknown.
    shell.operator.output("user", "delete", "globex/member", "--yes")
    error = shell.operator.error("certificate", "access", "--user", "member", "--cluster", "plain")
    assert error.startswith(f"Several users are named member. Write {namesake} or tests/member.")


def test_an_unknown_user_differs_from_a_user_without_certificates(shell: Shell) -> None:
    def error(name: str) -> str:
        return shell.operator.error("certificate", "revoke", "--user", name, "--cluster", "eip", "--yes")

    assert error("tests/admin") == error("admin")
    assert error("admin") == (
        "No unexpired certificate for the cluster tests/eu-de/eip belongs to the user tests/admin."
    )
    assert error("tests/nobody").startswith("There is no user tests/nobody.")


def test_a_revocation_says_whose_certificates_it_revoked(shell: Shell) -> None:
    def done(user: str, *place: str) -> str:
        note = shell.operator.run("certificate", "revoke", "--user", user, *place, "--yes").err
        return note.splitlines()[0]

    plain = ("--cluster", "plain")
    where = "of the user tests/member in the cluster tests/eu-de/plain"
    assert done("member", *plain) == f"Revoked 2 certificates {where}."
    assert done("member", *plain) == f"All unexpired certificates {where} were revoked before."
    member = "of the user tests/member in every cluster"
    assert done("member", "--everywhere") == f"Revoked 1 certificate {member}."
    assert done("member", "--everywhere") == f"All unexpired certificates {member} were revoked before."
    reader = shell.world.people["reader"].user.id
    assert done("reader", "--everywhere") == (
        "There is no unexpired certificate of the user tests/reader in any cluster."
    )
    assert done(reader, *plain).startswith("There is no unexpired certificate of the user tests/reader in ")


def test_an_empty_list_says_which_certificates_were_looked_for(shell: Shell) -> None:
    listed = shell.operator.run("certificate", "list", "--user", "reader")
    assert (listed.code, listed.err) == (0, "No certificate of the user reader matches.\n")
    revocations = shell.operator.run("certificate", "revocations", "--user", "member")
    assert revocations.err.startswith("No revocation covers the certificates of member in all clusters.")


def test_a_truncated_list_prints_a_note(shell: Shell) -> None:
    done = shell.operator.run("certificate", "list", "--limit", "3", "--output", "name")
    assert done.out.split() == [shell.name(number) for number in (3, 2, 1)]
    assert "--limit" in done.err
    done = shell.operator.run("certificate", "list", "--limit", "4", "--output", "csv")
    assert done.err == ""
    read = list(csv.DictReader(io.StringIO(done.out, newline="")))
    assert [row["serial"] for row in read] == [
        serial_hex(certificate.serial_number) for _, _, certificate in reversed(shell.issued)
    ]


@pytest.mark.parametrize("output", ["csv", "json", "yaml", "name"])
def test_only_a_table_is_truncated_by_default(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.setattr(certificate_commands, "_TABLE_LINES", 2)
    monkeypatch.setattr(connection, "_PAGE", 1)
    table = shell.operator.run("certificate", "list")
    assert len(table.out.splitlines()) == 1 + 2
    assert "Only the first 2 are listed" in table.err
    whole = shell.operator.run("certificate", "list", "--output", output)
    assert whole.err == ""
    assert all(shell.name(number) in whole.out for number in range(4))


@pytest.mark.parametrize("said", ["soon", "2026-01-01T00:00:00", "999999999w"])
def test_invalid_times_are_wrong_usage(shell: Shell, said: str) -> None:
    assert "--expires-before" in shell.operator.usage_error("certificate", "list", "--expires-before", said)


def test_a_certificate_is_shown_by_any_of_its_names(shell: Shell) -> None:
    who, _, certificate = shell.issued[0]
    name = shell.name(0)
    for named in (
        name,
        name[:8],
        name.upper(),
        f"{name[:4]}:{name[4:8]}",
        serial_hex(certificate.serial_number),
    ):
        row = shell.operator.output_json("certificate", "show", named)
        assert x509.load_pem_x509_certificate(row["pem"].encode()) == certificate
    assert (row["user_name"], row["state"], row["rule"]) == (who, "live", "member")
    assert "pem" not in shell.operator.output("certificate", "show", name)
    assert shell.operator.output("certificate", "show", name, "--output", "name") == f"{name}\n"
    assert "8 digits" in shell.operator.error("certificate", "show", name[:7])
    assert "8 digits" in shell.operator.error("certificate", "show", "alice")
    assert "no such certificate" in shell.operator.error("certificate", "show", "00000000")


def test_an_ambiguous_abbreviation_is_refused(shell: Shell) -> None:
    for number in (0, 1):
        other = bytes.fromhex("abcdef01") + bytes([number]) * 28
        shell.execute("UPDATE certificate SET fingerprint = ? WHERE id = ?", other, number + 1)
    for command in ("show", "revoke"):
        assert "Several" in shell.operator.error("certificate", command, "abcdef01")
    assert shell.operator.output_json("certificate", "show", "abcdef0100")["user_name"] == "member"
    assert shell.names("--state", "revoked") == []


def test_a_revocation_of_one_certificate_is_undone(shell: Shell) -> None:
    done = shell.operator.run(
        "certificate",
        "revoke",
        shell.name(0)[:8],
        "--crl-reason",
        "superseded",
        "--note",
        "lost",
        "--output",
        "json",
        "--yes",
    )
    made = json.loads(done.out)
    assert (made["fingerprint"], made["reason"], made["note"]) == (shell.name(0), "superseded", "lost")
    assert "no refusal is expected in the cluster plain" in done.err
    assert f"clustercert certificate undo {made['id']}" in done.err
    assert shell.names("--state", "revoked") == [shell.name(0)]
    (event,) = shell.events("certificate.revoked")
    assert event["subject"] == shell.name(0)
    assert str(event["actor"]).startswith("cli:")

    shell.operator.output("certificate", "undo", str(made["id"]))
    assert shell.names("--state", "revoked") == []
    (listed,) = shell.operator.output_json("certificate", "revocations", "--cluster", "plain")
    assert listed["id"] == made["id"]
    assert listed["undone_at"]
    assert "already undone" in shell.operator.error("certificate", "undo", str(made["id"]))


def test_revoke_says_that_the_admission_policy_denies_only_writes(shell: Shell) -> None:
    shell.operator.output("cluster", "update", "plain", "--admission")
    done = shell.operator.run("certificate", "revoke", shell.name(0), "--yes")
    assert "Refusal of writes expected by 20" in done.err
    assert "The API server accepts reads until the certificate expires." in done.err
    shell.operator.output("cluster", "update", "plain", "--credential-role", "admin=cluster-admin")
    # The certificate is older than the option, so it has no binding.
    done = shell.operator.run("certificate", "revoke", shell.name(3), "--yes")
    assert "Refusal of writes expected by 20" in done.err
    done = shell.operator.run("certificate", "revoke", "--cluster", "plain", "--yes")
    assert "Refusal of certificates with a binding expected by 20" in done.err
    assert "refuses only writes with the other certificates until they expire" in done.err


def test_a_revocation_for_key_compromise_is_not_undone(shell: Shell) -> None:
    done = shell.operator.run(
        "certificate", "revoke", shell.name(0), "--crl-reason", "keyCompromise", "-o", "name", "--yes"
    )
    assert "undo" not in done.err
    assert "can't be undone" in shell.operator.error("certificate", "undo", done.out.strip())


def test_many_certificates_are_revoked_after_confirmation(shell: Shell) -> None:
    members = ("certificate", "revoke", "--user", "member")
    member, plain = shell.world.people["member"].user, shell.world.clusters["plain"]
    refused = shell.operator.error(*members, "--cluster", "plain")
    assert (
        f"the user tests/member ({member.id}) in the cluster tests/eu-de/plain ({plain.id}) (2 live)?"
        in refused
    )
    assert "--yes" in refused
    assert f"({member.id}) in every cluster (3 live)?" in shell.operator.error(*members, "--everywhere")
    cluster = shell.operator.error("certificate", "revoke", "--cluster", plain.id)
    assert f"all users in the cluster tests/eu-de/plain ({plain.id}) (3 live)?" in cluster
    assert "no cluster other" in shell.operator.error(*members, "--cluster", "other")
    assert shell.names("--state", "revoked") == []
    shell.operator.output(*members, "--cluster", "plain", "--yes")
    assert shell.names("--state", "revoked") == [shell.name(3), shell.name(0)]
    shell.operator.output(*members, "--everywhere", "--yes")
    assert shell.names("--state", "revoked") == [shell.name(3), shell.name(1), shell.name(0)]
    shell.operator.output("certificate", "revoke", "--cluster", "plain", "--yes")
    assert shell.names("--state", "live") == []
    everywhere = shell.operator.output_json("certificate", "revocations", "--user", "member")
    assert [(each["user_id"], each["cluster_id"]) for each in everywhere] == [
        (shell.world.people["member"].user.id, None)
    ]
    assert len(shell.operator.output_json("certificate", "revocations", "--cluster", "plain")) == 2


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
def test_ambiguous_options_of_revoke_are_wrong_usage(shell: Shell, arguments: tuple[str, ...]) -> None:
    shell.operator.usage_error("certificate", "revoke", *arguments, "--yes")
    assert shell.names("--state", "revoked") == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--user", "member", "--cluster", ""), "There is no cluster"),
        (("--user", "", "--cluster", "plain"), "is not a name: it is empty"),
        (("--user", "", "--everywhere"), "is not a name: it is empty"),
        (("",), "does not name a certificate"),
    ],
)
def test_an_empty_name_never_widens_a_revocation(
    shell: Shell, arguments: tuple[str, ...], words: str
) -> None:
    assert words in shell.operator.error("certificate", "revoke", *arguments, "--yes")
    assert shell.names("--state", "revoked") == []


def test_the_question_names_the_user_whom_a_name_in_certificates_finds(shell: Shell) -> None:
    member = shell.world.people["member"].user.id
    shell.execute("INSERT INTO username (name, user_id) VALUES ('alice', ?)", member)
    refused = shell.operator.error("certificate", "revoke", "--user", "alice", "--everywhere")
    assert f"the user tests/member ({member}) in every cluster" in refused
    shell.operator.output("user", "delete", "member", "--yes")
    refused = shell.operator.error("certificate", "revoke", "--user", "alice", "--everywhere")
    assert f"the user alice ({member}) in every cluster (0 live)" in refused


def test_all_revocations_are_listed_and_those_since_a_time(shell: Shell) -> None:
    shell.operator.output("certificate", "revoke", shell.name(0), "--yes")
    shell.operator.output("certificate", "revoke", "--user", "admin", "--everywhere", "--yes")
    shell.operator.output("certificate", "revoke", shell.name(1), "--yes")
    shell.execute("UPDATE revocation SET at = '2026-01-01 00:00:00.000000' WHERE id = 1")
    list_all = ("certificate", "revocations")
    found = shell.operator.output_json(*list_all)
    assert [(each["id"], each["user_name"], each["cluster_name"]) for each in found] == [
        (3, "member", "eip"),
        (2, "admin", None),
        (1, "member", "plain"),
    ]
    lines = [line.split() for line in shell.operator.output(*list_all).splitlines()]
    assert lines[0][:5] == ["ID", "AT", "USER", "PROJECT", "CLUSTER"]
    assert lines[2][2:5] == ["tests/admin", "all", "all"]
    shell.execute('UPDATE revocation SET "by" = ? WHERE id = 2', shell.world.people["operator"].user.id)
    table = shell.operator.output(*list_all, "-o", "wide").splitlines()
    assert [line.split()[-2] for line in table[1:]][1] == "tests/operator"
    names = (*list_all, "-o", "name")
    assert shell.operator.output(*names, "--since", "1h").split() == ["3", "2"]
    assert shell.operator.output(*names, "--since", "2026-01-01T00:00:00Z").split() == ["3", "2", "1"]
    assert shell.operator.output(*names, "--project", "eu-de").split() == ["3", "1"]
    assert shell.operator.output(*names, "--user", "admin").split() == ["2"]
    done = shell.operator.run(*names, "--limit", "1")
    assert (done.out, "--limit" in done.err) == ("3\n", True)
    shell.operator.usage_error(*list_all, "--cluster", "plain", "--user", "member")


def test_the_access_report_has_the_users_of_all_pages(shell: Shell) -> None:
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 131)"
    others = (
        "epoch, cluster_id, project_id, ca_id, groups, not_before, not_after, key_type, key_origin, auth_method,"
        " source_address, request_id, issued_at, kind, der"
    )
    shell.execute(
        f"{numbers} INSERT INTO certificate (fingerprint, serial, credential_number, user_id, user_name,"
        f" {others}) SELECT randomblob(32), i, printf('%040x', i), 'user-' || (i % 120),"
        f" 'user-' || (i % 120), {others} FROM certificate, n WHERE certificate.id = 1"
    )
    of_cluster = ("certificate", "access", "--cluster", "plain")
    report = shell.operator.output_json(*of_cluster)
    assert (len(report["users"]), report["totals"]["users"], report["complete"]) == (122, 122, True)
    assert "next" not in report
    assert len(shell.operator.output(*of_cluster, "-o", "name").split()) == 134


def test_the_access_report_explains_the_controls(shell: Shell) -> None:
    shell.operator.output("certificate", "revoke", shell.name(0), "--yes")
    said = shell.operator.output("certificate", "access", "--cluster", "plain", "--explain")
    lines = said.splitlines()
    assert lines[0].split() == [
        "CERTIFICATE", "USER", "STATE", "HAS-ACCESS", "NOT-AFTER", "LAST-SEEN-AT", "STOPPED-BY", "GROUPS",
        "FINGERPRINT", "REFUSAL",
    ]  # fmt: skip
    table = [re.split(r" {2,}", line) for line in lines[1:4]]
    assert [[*row[:4], *row[-2:]] for row in table] == [
        [shell.name(2)[:16], "tests/admin", "live", "yes", shell.name(2), "-"],
        [shell.name(0)[:16], "tests/member", "revoked", "yes", shell.name(0), "not refused"],
        [shell.name(3)[:16], "tests/member", "live", "yes", shell.name(3), "-"],
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
            for line in lines[lines.index("Controls that stop a revoked certificate, and how fast:") :]
        )
        <= 100
    )

    shell.execute(
        "INSERT INTO webhook_token (id, cluster_id, hash, created_at)"
        " VALUES ('t', ?, x'00', '2026-01-01 00:00:00.000000')",
        shell.world.clusters["plain"].id,
    )
    said = " ".join(shell.operator.output("certificate", "access", "--cluster", "plain").split())
    assert "Not enforced. The API server has never asked the webhook, and no other control is set up." in said
    assert "Not set up: webhook, binding, admission." in said
    assert "webhook: A webhook token exists, but the API server has never called the webhook." in said
    assert "service-account token" not in said
    assert (
        "the API server has never called"
        in shell.operator.run("certificate", "revoke", shell.name(2), "--yes").err
    )
    shell.execute("UPDATE webhook_token SET last_asked_at = ?", f"{utc_now():%Y-%m-%d %H:%M:%S.%f}")
    shell.execute(
        "INSERT INTO unknown_identity (cluster_id, identity, username, groups, hashes, fingerprints, first_seen_at,"
        " last_seen_at, last_alert_at, alerts_of_each) VALUES (?, x'00', 'mallory', '[\"system:masters\"]', 1,"
        " '[\"abcd\"]', '2026-01-01 00:00:00.000000', '2026-01-01 00:00:00.000000', '2026-01-01 00:00:00.000000',"
        " 1)",
        shell.world.clusters["plain"].id,
    )
    said = shell.operator.output(
        "certificate", "access", "--cluster", "plain", "--group", "clustercert:editors"
    )
    table = [re.split(r" {2,}", line) for line in said.splitlines()[1:3]]
    assert [[*row[2:4], *row[-2:]] for row in table] == [
        ["revoked", "no", shell.name(0), "refusal expected"],
        ["live", "yes", shell.name(3), "-"],
    ]
    assert "mallory" not in said
    report = shell.operator.output_json("certificate", "access", "--cluster", "plain")
    assert report["unknown_credentials"][0]["username"] == "mallory"
    assert "mallory" in shell.operator.output("certificate", "access", "--cluster", "plain")
    names = shell.operator.output(
        "certificate", "access", "--cluster", "plain", "--user", "admin", "-o", "name"
    )
    assert names.split() == [shell.name(2)]
    done = shell.operator.run("certificate", "revoke", shell.name(3), "--yes")
    assert re.search(r"Refusal expected by 20\S+Z \(webhook\)\.", done.err)
