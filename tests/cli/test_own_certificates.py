"""`clustercert certificate` with the logins of a developer, a project's admin and an operator, over HTTPS."""

import json
from pathlib import Path

import pytest
from cryptography import x509

from clustercert.pki.certificates import fingerprint
from support.remote_site import COLUMNS, RemoteSite
from support.remote_user import RemoteUser
from support.stores import rows
from support.wait import eventually

pytestmark = pytest.mark.slow


def test_developers_list_and_show_their_own_in_all_projects(place: RemoteSite) -> None:
    alice, bobs = place.alice, place.issue(place.bob)
    mine = [place.issue(alice, "prod"), place.issue(alice, "staging")]
    listed = place.own(alice)
    assert [each["fingerprint"] for each in listed[:2]] == mine[::-1]
    assert [(each["cluster_name"], each["project_name"]) for each in listed[:2]] == [
        ("staging", "eu-nl"),
        ("prod", "eu-de"),
    ]
    assert place.names(alice, "--all") == place.names(alice)
    assert bobs not in place.names(alice, "--all")
    assert place.names(alice, "--cluster", "staging", "--state", "live") >= {mine[1]}
    assert mine[0] not in place.names(alice, "--cluster", "staging")
    shown = alice.output_json("certificate", "show", mine[1][:16])
    leaf = x509.load_pem_x509_certificate(shown["pem"].encode())
    assert fingerprint(leaf).hex() == shown["fingerprint"] == mine[1]
    for command in ("show", "revoke"):
        assert "no such certificate" in alice.failure(5, "certificate", command, bobs)
    assert place.state(bobs) == "live"


def test_developers_revoke_their_own_after_a_question(place: RemoteSite) -> None:
    alice, name = place.alice, place.issue(place.alice)
    refused = alice.failure(2, "certificate", "revoke", name[:16])
    assert f"Revoke the certificate {name} of the user alice for the cluster prod" in refused
    assert "--yes" in refused
    assert place.state(name) == "live"
    done = alice.run("certificate", "revoke", name[:16], "--crl-reason", "superseded", "--yes", "-o", "json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["fingerprint"] == name
    assert "no refusal is expected in the cluster prod" in done.err
    assert "undo" not in done.err
    assert place.state(name) == "revoked"
    query = "SELECT actor FROM audit_event WHERE kind = 'certificate.revoked' AND subject = ?"
    [(actor,)] = rows(place.operator.folder / "data" / "clustercert.db", query, name)
    assert actor == place.own(alice)[0]["user_id"]


def test_developers_revoke_all_their_own_for_a_cluster(place: RemoteSite) -> None:
    name, other = place.issue(place.alice, "staging"), place.issue(place.alice, "prod")
    assert "in the cluster Default/eu-nl/staging" in place.alice.failure(
        2, "certificate", "revoke", "--user", "alice", "--cluster", "staging"
    )
    command = ("certificate", "revoke", "--user", "alice", "--cluster", "staging", "--note", "lost", "--yes")
    assert place.alice.output_json(*command)["note"] == "lost"
    assert (place.state(name), place.state(other)) == ("revoked", "live")
    assert place.alice.failure(4, "certificate", "revoke", "--user", "bob", "--cluster", "prod", "--yes")


def test_developers_revoke_all_their_own_in_all_clusters(place: RemoteSite) -> None:
    names = [place.issue(place.bob, "staging"), place.issue(place.bob, "staging")]
    refused = place.alice.failure(4, "certificate", "revoke", "--user", "bob", "--everywhere", "--yes")
    assert refused.startswith("Only operators can revoke the certificates of another user everywhere.")
    for each in ("bob", "Default/bob"):
        question = place.bob.failure(2, "certificate", "revoke", "--user", each, "--everywhere")
        assert "of the user Default/bob" in question or "of the user bob" in question
    place.bob.output("certificate", "revoke", "--user", "bob", "--everywhere", "--yes")
    assert {place.state(each) for each in names} == {"revoked"}
    again = place.bob.run("certificate", "revoke", "--user", "bob", "--everywhere", "--yes")
    assert "were revoked before" in again.err


def test_admins_find_no_user_whose_id_is_unknown_to_their_project(place: RemoteSite) -> None:
    options = ("--user", "5eed" * 8, "--cluster", "prod", "--yes")
    error = place.bob.failure(5, "certificate", "revoke", *options)
    assert f"No user with the id {'5eed' * 8} has a role in this project" in error


def test_a_role_that_is_lost_leaves_the_own_certificates(place: RemoteSite) -> None:
    name = place.issue(place.alice, "staging")
    place.operator.output("role", "unassign", "member", "--user", "alice", "--project", "eu-nl")
    try:
        assert name in place.names(place.alice)
        assert place.alice.output("certificate", "revoke", name, "--yes", "-o", "name")
        assert place.state(name) == "revoked"
    finally:
        place.operator.output("role", "assign", "member", "--user", "alice", "--project", "eu-nl")
        # Later tests need it, and the service remembers the roles of a token for up to a second.
        eventually(lambda: place.alice.run("clusters", "--project", "eu-nl").code == 0)


def test_who_removes_a_role_chooses_what_happens_to_its_certificates(place: RemoteSite) -> None:
    bob, name = place.bob, place.issue(place.alice, "staging")
    role = ("member", "--user", "alice", "--project", "eu-nl")
    live = place.names(bob, "--cluster", "staging", "--user", "alice", "--state", "live")
    [until] = {bob.output_json("certificate", "show", each)["not_after"] for each in [name]}

    kept = bob.run("role", "unassign", *role)
    assert kept.err.splitlines()[0] == "Removed the role member in the project eu-nl from alice."
    text = " ".join(kept.err.split())
    assert f"The user has {len(live)} valid certificate" in text
    assert f"of the project eu-nl, the last until {until}. The command revoked no certificates." in text
    assert place.state(name) == "live"

    bob.output("role", "assign", *role)
    code, screen = place.terminal(bob, "role", "unassign", *role, typed="y\n")
    assert (code, "Revoke" in "".join(screen)) == (0, True)
    assert {place.state(each) for each in live} == {"revoked"}
    bob.output("role", "assign", *role)
    nothing = bob.run("role", "unassign", *role, "--revoke")
    assert nothing.err.splitlines()[1] == "There were no valid certificates to revoke."
    bob.output("role", "assign", *role)
    eventually(lambda: place.alice.run("clusters", "--project", "eu-nl").code == 0)
    again = place.issue(place.alice, "staging")
    done = bob.run("role", "unassign", *role, "--revoke")
    assert done.err.splitlines()[1].startswith("Revoked 1 certificate. Clusters that enforce revocations")
    assert place.state(again) == "revoked"
    bob.output("role", "assign", *role)
    eventually(lambda: place.alice.run("clusters", "--project", "eu-nl").code == 0)


@pytest.mark.parametrize("answer", ["keep", "revoke"])
def test_who_deletes_a_group_chooses_what_happens_to_its_certificates(place: RemoteSite, answer: str) -> None:
    carol, name = place.carol, place.issue(place.alice, "staging")
    carol.output("group", "create", "blue")
    carol.output("group", "add-user", "blue", "alice")
    carol.output("role", "assign", "member", "--group", "blue", "--project", "eu-nl")
    live = place.names(place.bob, "--cluster", "staging", "--user", "alice", "--state", "live")
    if answer == "keep":
        text = " ".join(carol.run("group", "delete", "blue", "--yes").err.split())
        assert text.startswith(f"Deleted the group blue. The user has {len(live)} valid certificate")
        assert "of projects in which the group has a role, the last until" in text
        assert place.state(name) == "live"
    else:
        done = carol.run("group", "delete", "blue", "--yes", "--revoke")
        assert done.err.splitlines()[1].startswith(f"Revoked {len(live)} certificate")
        assert {place.state(each) for each in live} == {"revoked"}


def test_admins_reach_all_their_projects(place: RemoteSite) -> None:
    bob, others = place.bob, {place.issue(place.alice, "prod"), place.issue(place.alice, "staging")}
    for options in (("--all",), ("--user", "alice")):
        assert place.names(bob, *options, "--state", "live") >= others
    assert len(place.names(bob, "--project", "eu-nl", "--state", "live") & others) == 1
    assert others.isdisjoint(place.names(bob))
    for name in others:
        assert bob.output_json("certificate", "show", name[:16])["user_name"] == "alice"
    report = bob.output_json("certificate", "access", "--cluster", "staging", "--user", "alice")
    assert {each["user_name"] for each in report["users"]} == {"alice"}
    for name in others:
        assert bob.output("certificate", "revoke", name[:16], "--yes", "-o", "name")
        assert place.state(name) == "revoked"
    made = bob.output_json("certificate", "revocations", "--cluster", "staging")[0]
    assert bob.failure(4, "certificate", "undo", str(made["id"]))


def test_operators_reach_everything(place: RemoteSite) -> None:
    carol, name = place.carol, place.issue(place.alice, "prod")
    assert place.names(carol) == set()
    assert "Add --all to search all" in carol.run("certificate", "list").err
    assert place.names(carol, "--all", "--user", "alice") >= {name}
    assert place.names(carol, "--cluster", "prod", "--state", "live") >= {name}
    done = carol.run("certificate", "revoke", "--user", "alice", "--everywhere", "--yes", "-o", "name")
    assert f"clustercert certificate undo {done.out.strip()}" in done.err
    assert place.state(name) == "revoked"
    carol.output("certificate", "undo", done.out.strip())
    assert place.state(name) == "live"
    assert carol.output_json("certificate", "revocations", "--user", "alice")[0]["undone_at"]


def test_auditors_read_everything_and_change_nothing(place: RemoteSite) -> None:
    dora, name = place.dora, place.issue(place.alice)
    assert name in place.names(dora, "--all")
    assert place.names(dora, "--project", "eu-de") >= {name}
    assert place.names(dora, "--user", "alice") == place.names(place.carol, "--user", "alice")
    assert place.names(dora) == set()
    assert dora.output_json("certificate", "show", name[:16])["user_name"] == "alice"
    assert dora.output_json("certificate", "access", "--cluster", "prod", "--user", "alice")["users"]
    for target in ((name[:16],), ("--cluster", "prod"), ("--cluster", "prod", "--user", "alice")):
        assert dora.failure(4, "certificate", "revoke", *target, "--yes")
    assert place.state(name) == "live"


def test_revocations_are_listed_for_those_who_see_all_certificates(place: RemoteSite) -> None:
    place.bob.output("certificate", "revoke", place.issue(place.alice, "staging"), "--yes")
    newest = ("certificate", "revocations", "--since", "1h", "--limit", "1")
    for user, name in ((place.carol, "alice"), (place.dora, "alice"), (place.bob, None)):
        [found] = user.output_json(*newest)
        assert (found["user_name"], found["cluster_name"]) == (name, "staging")
        assert (found["user_domain"], found["project_name"]) == ("Default" if name else None, "eu-nl")
    header, row = place.carol.output(*newest, "-o", "wide").splitlines()
    assert header.split()[2:5] == ["USER", "PROJECT", "CLUSTER"]
    assert row.split()[2:5] == ["Default/alice", "Default/eu-nl", "staging"]
    assert place.alice.failure(4, *newest)


def test_errors_have_their_exit_codes(place: RemoteSite, tmp_path: Path) -> None:
    alice = place.alice
    assert "Did you mean prod?" in alice.failure(5, "certificate", "list", "--cluster", "prd")
    assert "Did you mean eu-de?" in alice.failure(5, "certificate", "list", "--project", "eu-dee")
    assert "Did you mean alice?" in place.carol.failure(5, "certificate", "list", "--all", "--user", "alcie")
    assert alice.failure(4, "certificate", "access", "--cluster", "prod")
    assert "no such certificate" in alice.failure(5, "certificate", "show", "0" * 16)
    assert "clustercert login" in RemoteUser(tmp_path).failure(3, "certificate", "list")


def test_identifiers_stay_whole_at_eighty_columns(place: RemoteSite) -> None:
    name = place.issue(place.alice)
    for command in (
        ("list",),
        ("list", "--all"),
        ("show", name[:16]),
        ("access", "--cluster", "prod"),
        ("revocations", "--cluster", "prod"),
    ):
        user = place.alice if command[0] in {"list", "show"} else place.bob
        code, lines = place.terminal(user, "certificate", *command)
        assert code == 0, lines
        assert max(map(len, lines)) <= COLUMNS, lines
    _, lines = place.terminal(place.alice, "certificate", "list", "--state", "live")
    # A line above the heading has the columns with the same value in all rows.
    heading = next(line for line in lines if line.startswith("CERTIFICATE"))
    assert {"STATE", "CLUSTER", "NOT-AFTER"} <= set(heading.split())
    assert all("USER-NAME" not in line for line in lines)
    assert any(line.startswith(name[:16]) for line in lines)
    _, lines = place.terminal(place.alice, "certificate", "show", name[:16])
    assert f"  {name}" in lines
    _, lines = place.terminal(place.alice, "certificate", "list", "-o", "wide")
    assert any(line.endswith(name) for line in lines)


def test_a_person_is_asked_at_the_terminal(place: RemoteSite) -> None:
    name = place.issue(place.alice)
    code, lines = place.terminal(place.alice, "certificate", "revoke", name[:16], typed="n\n")
    assert (code, lines[-1].endswith("[y/N]: Aborted.")) == (1, True)
    assert place.state(name) == "live"
    code, lines = place.terminal(place.alice, "certificate", "revoke", name[:16], typed="y\n")
    assert code == 0, lines
    assert place.state(name) == "revoked"
