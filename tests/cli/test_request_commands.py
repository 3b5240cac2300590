"""`clustercert request`: people ask for access, decide about it and end it, at a running service."""

import json
import re
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from support.access_site import (
    REASON,
    REQUESTED,
    RULES,
    STANDING,
    URGENT,
    AccessCluster,
    AccessSite,
    policy_groups,
)
from support.exec_plugin import COMMAND, FORBIDDEN, status_of
from support.terminal import CTRL_C, in_a_terminal
from support.user_site import leaf_of
from support.wait import SECONDS, eventually, line_with

NOT_FOUND, USAGE = 5, 2


def test_the_certificates_of_a_request_are_listed_by_eight_digits_of_its_id(cluster: AccessCluster) -> None:
    anna, request_id = cluster.site.anna, cluster.ask()["id"]
    cluster.approve(request_id)
    cluster.make_due()
    assert cluster.run_plugin().returncode == 0
    listed = ("certificate", "list", "--access-request")
    [found] = json.loads(anna.output(*listed, request_id[:8], "-o", "json"))
    assert found["access_request_id"] == request_id
    unknown = anna.run(*listed, "0" * 8)
    assert unknown.returncode != 0
    assert "There is no access request 00000000 that you may see." in unknown.stderr
    anna.output("request", "end", request_id)


def test_a_refused_certificate_with_a_request_names_the_command_that_explains_it(
    cluster: AccessCluster,
) -> None:
    anna, request_id = cluster.site.anna, cluster.ask()["id"]
    cluster.approve(request_id)
    refused = anna.run(
        "kubeconfig", "get", cluster.name, "--request", request_id[:8], "--duration", "9", "--out", "-"
    )
    assert (refused.returncode, refused.stdout) == (FORBIDDEN, "")
    [command] = re.findall(r"`clustercert (explain .*?)` shows the reason", refused.stderr)
    assert command == f"explain {cluster.id} --request {request_id}"
    assert "gives app:admins" in anna.output(*command.split())
    anna.output("request", "end", request_id)


def test_a_request_is_asked_for_seen_approved_and_ended(people: AccessSite, cluster: AccessCluster) -> None:
    anna, bert, carla = people.anna, people.bert, people.carla
    asked = anna.run(
        *("request", "create", cluster.name, "--group", REQUESTED, "--for", "1h", "--reason", REASON),
        *("--ticket", "OPS-12"),
    )
    assert asked.returncode == 0, asked.stderr
    request_id = asked.stdout.split()[2]
    short = request_id[:8]
    assert asked.stderr.splitlines() == [
        f"To approve it, somebody else runs `clustercert request approve {short} --reason REASON`.",
        "kubectl uses the access by itself as soon as it is approved, with the profile default.",
    ]
    # An equal request is not created twice, and marks the plugin's cache again.
    cluster.mark.unlink()
    again = anna.run(
        *("request", "create", cluster.name, "--group", REQUESTED, "--for", "1h", "--reason", "another one")
    )
    assert (again.returncode, again.stdout.split()[2]) == (0, request_id)
    assert again.stderr.startswith(
        "You have this open request already, so no second request was created. The reason and"
    )
    assert request_id in cluster.mark.read_text()

    shown = " ".join(bert.output("request", "show", short).split())
    assert f"What {REQUESTED} in Default/eu-de/{cluster.name} for 1 hour, by the rule repair" in shown
    assert f"Why {REASON} (ticket OPS-12)" in shown
    assert "Approval role is member: missing Approval group is leads: missing" in shown
    assert f"`clustercert request approve {short} --reason REASON`" in shown
    [row] = json.loads(bert.output("request", "list", "--to-decide", "--cluster", cluster.name, "-o", "json"))
    assert (row["id"], row["state"], row["may"]) == (request_id, "pending", ["approve", "deny", "end"])
    assert (
        anna.output("request", "list", "--mine", "--cluster", cluster.id, "-o", "name") == f"{request_id}\n"
    )

    own = anna.run("request", "approve", short, "--reason", "mine")
    assert (own.returncode, own.stdout) == (FORBIDDEN, "")
    assert "You can't decide your own request." in own.stderr
    assert cluster.approve(short, bert)["state"] == "pending"
    approved = cluster.approve(request_id.upper(), carla)
    assert approved["state"] == "approved"
    assert [each["approved_by"] for each in approved["conditions"]] == ["Default/bert", "Default/carla"]

    ended = json.loads(anna.output("request", "end", short, "--reason", "done", "-o", "json"))
    assert (ended["state"], ended["closed_by"], ended["closed_why"]) == ("ended", "Default/anna", "done")
    assert anna.output("request", "list", "--mine", "--cluster", cluster.id) == ""
    [row] = json.loads(anna.output("request", "list", "--closed", "--cluster", cluster.id, "-o", "json"))
    assert row["id"] == request_id
    late = carla.run("request", "deny", short, "--reason", "too late")
    assert (late.returncode, "ended" in late.stderr) == (1, True)


def test_a_reason_that_looks_like_a_time_is_shown_as_it_is(
    people: AccessSite, cluster: AccessCluster
) -> None:
    request_id = cluster.ask()["id"]
    people.anna.output("request", "end", request_id, "--reason", "done at 2026-99-99T99:99:99Z")
    shown = " ".join(people.anna.output("request", "show", request_id).split())
    assert "Next The access was ended by Default/anna: done at 2026-99-99T99:99:99Z." in shown


def test_the_list_says_when_access_ends_that_nobody_has_approved(
    people: AccessSite, cluster: AccessCluster
) -> None:
    longer = RULES.replace('approve_within = "30m"', 'approve_within = "2h"')
    request = ("request", "list", "--cluster", cluster.name, "-o", "wide")
    people.operator.configure(longer)
    try:
        assert eventually(
            lambda: "2h" in people.anna.output("request", "offers", cluster.name, "-o", "wide").split()[-3]
        )
        request_id = cluster.ask(group=URGENT)["id"]
        assert cluster.groups() == {STANDING, URGENT}
    finally:
        people.operator.configure(RULES)
    shown = json.loads(people.carla.output("request", "show", request_id, "-o", "json"))
    heading, row = (re.split(r" {2,}", line) for line in people.carla.output(*request).splitlines())
    assert row[heading.index("STATE")] == "active, not approved"
    assert row[heading.index("UNTIL")] == shown["ends_at"] < shown["approve_by"]
    assert (shown["label"], shown["severity"], shown["due_at"]) == (
        *("active, not approved", "bad", shown["ends_at"]),
    )


def test_a_truncated_list_prints_a_note(people: AccessSite, cluster: AccessCluster) -> None:
    first = cluster.ask()["id"]
    people.anna.output("request", "end", first, "--reason", "done")
    second = cluster.ask()["id"]
    listing = ("request", "list", "--all", "--cluster", cluster.id, "-o", "name", "--limit")
    whole, cut = people.anna.run(*listing, "2"), people.anna.run(*listing, "1")
    assert (whole.stdout.split(), whole.stderr) == ([second, first], "")
    assert cut.stdout.split() == [second]
    assert cut.stderr == "Only the first 1 are listed. Raise --limit, or filter the list.\n"


def test_an_id_that_names_no_visible_request_is_refused(people: AccessSite, cluster: AccessCluster) -> None:
    request_id = cluster.ask()["id"]
    for text in ("0123456", "0" * 32, "0" * 8, "../caller", "g" * 8):
        done = people.bert.run("request", "show", text)
        assert (done.returncode, done.stdout) == (NOT_FOUND, ""), text
    # A user who can't approve the request sees nothing of it.
    for text in (request_id, request_id[:8]):
        hidden = people.guest.run("request", "show", text)
        assert hidden.returncode == NOT_FOUND
        assert "There is no" in hidden.stderr


def test_a_request_is_denied_with_a_reason(people: AccessSite, cluster: AccessCluster) -> None:
    request_id = cluster.ask()["id"]
    assert people.carla.run("request", "deny", request_id).returncode == USAGE
    denied = json.loads(
        people.carla.output("request", "deny", request_id, "--reason", "not now", "-o", "json")
    )
    assert (denied["state"], denied["closed_by"], denied["closed_why"]) == (
        "denied",
        "Default/carla",
        "not now",
    )
    assert "Default/carla denied, " in " ".join(people.anna.output("request", "show", request_id).split())


def test_used_access_is_extended_with_the_same_approvals(people: AccessSite, cluster: AccessCluster) -> None:
    request_id = cluster.ask()["id"]
    cluster.approve(request_id)
    early = people.anna.run("request", "extend", request_id, "--for", "30m", "--reason", REASON)
    assert early.returncode == 1
    assert cluster.groups() == {STANDING, REQUESTED}
    before = json.loads(people.anna.output("request", "show", request_id, "-o", "json"))
    extend = (
        "request",
        "extend",
        request_id,
        "--for",
        "30m",
        "--reason",
        "still broken, sorry",
        "-o",
        "json",
    )
    asked = json.loads(people.anna.output(*extend))
    assert asked["extension"] == {"duration": 1800, "reason": "still broken, sorry", "state": "pending"}
    listed = people.carla.output("request", "list", "--cluster", cluster.id)
    assert re.search(r"active, extension pending .* 0 of 2 ", listed)
    # Bert means the access, and does not know of the extension.
    unaware = cluster.approve(request_id, people.bert)
    assert {each["part"] for each in unaware["decisions"]} == {"access"}
    denied = people.carla.run("request", "deny", request_id, "--reason", "not now")
    assert (denied.returncode, "about its extension, not about its access" in denied.stderr) == (1, True)
    shown = " ".join(people.bert.output("request", "show", request_id).split())
    assert f"`clustercert request approve {request_id[:8]} --extension --reason REASON`" in shown
    assert "Approval role is member: missing Approval group is leads: missing" in shown
    after = cluster.approve(request_id, options=("--extension",))
    assert after["extension"]["state"] == "approved"
    moved = datetime.fromisoformat(after["ends_at"]) - datetime.fromisoformat(before["ends_at"])
    assert moved == timedelta(minutes=30)


def test_offers_are_listed_with_their_terms(people: AccessSite, cluster: AccessCluster) -> None:
    offered = json.loads(people.anna.output("request", "offers", cluster.name, "-o", "json"))
    assert {each["rule"]: (each["groups"], each["before_approval"]) for each in offered} == {
        "repair": ([REQUESTED], False),
        "on-call": ([URGENT], True),
    }
    table = people.anna.output("request", "offers", cluster.name).splitlines()
    assert table[1].split()[:3] == [REQUESTED, "2h", "role"]
    wrong = people.anna.run(
        *("request", "create", cluster.name, "--group", "system:masters"),
        *("--for", "1h", "--reason", REASON),
    )
    assert wrong.returncode == FORBIDDEN
    assert f"repair: {REQUESTED}" in wrong.stderr
    assert not cluster.mark.exists()


@pytest.mark.parametrize(
    "command", ["list", "offers", "show", pytest.param("list --watch", marks=pytest.mark.full)]
)
def test_the_output_fits_a_terminal_of_80_columns(
    people: AccessSite, cluster: AccessCluster, command: str
) -> None:
    request_id = cluster.ask()["id"]
    more = {"offers": [cluster.name], "show": [request_id[:8]]}.get(command, ["--cluster", cluster.name])
    arguments = ["request", *command.split(), *more]

    if command.endswith("--watch"):
        typed = {"Ctrl-C ends this list.": CTRL_C}
        _, screen = in_a_terminal(arguments, typed, people.bert.environment, columns=80, echoes=True)
    else:
        _, screen = people.bert.in_terminal(*arguments)

    plain = re.sub(r"\x1b\[[0-9]*[A-Za-z]", "", screen)
    assert (REQUESTED if command == "offers" else request_id[:8]) in plain
    assert re.search(r"\(in (8h|7h\d+m)\)", " ".join(plain.split())) or command != "show"
    assert max(map(len, plain.splitlines())) <= 80, plain


def test_an_approver_sees_what_is_asked_in_80_columns_also_of_access_before_the_approval(
    people: AccessSite, cluster: AccessCluster
) -> None:
    request_id = cluster.ask(group=URGENT)["id"]
    assert cluster.groups() == {STANDING, URGENT}

    _, screen = people.carla.in_terminal("request", "list", "--cluster", cluster.name)

    # The reason does not fit beside the rest, so the request is a list of fields.
    lines = re.sub(r"\x1b\[[0-9]*[A-Za-z]", "", screen).splitlines()
    fields = dict(re.split(r" {2,}", line, maxsplit=1) for line in lines if "   " in line)
    assert (fields["request"], fields["state"]) == (request_id[:8], "active, not approved")
    shown = (fields["user"], fields["cluster"], fields["groups"], fields["reason"])
    assert shown == ("anna", f"eu-de/{cluster.name}", URGENT, REASON)


def test_access_before_the_approval_is_limited_and_decided_after_its_end(
    people: AccessSite, cluster: AccessCluster
) -> None:
    for _ in range(2):
        ended = cluster.ask(group=URGENT)["id"]
        assert cluster.groups() == {STANDING, URGENT}
        people.anna.output("request", "end", ended)
    create = ("request", "create", cluster.name, "--group", URGENT, "--for", "1h", "--reason", REASON)
    made = people.anna.run(*create)
    shown = " ".join(made.stdout.split())
    assert (
        "Next The access can't be used before the approval. This user has reached the rule's limit" in shown
    )
    assert re.search(r" Next use before an approval: \S+Z \(in 2[34]h[^)]*\) ", shown)
    assert "kubectl uses the access by itself as soon as it is approved" in made.stderr
    assert cluster.groups() == {STANDING}
    explained = people.anna.run("explain", cluster.name, "--request", made.stdout.split()[2])
    assert "The next use before an approval is possible at " in " ".join(explained.stdout.split())

    waiting = ("request", "list", "--to-decide", "--cluster", cluster.name, "-o", "name")
    assert len(people.carla.output(*waiting).split()) == 3
    # Bert meets no condition of this rule.
    assert people.bert.output(*waiting) == ""
    approved = cluster.approve(ended, people.carla)
    assert (approved["state"], approved["approved_at"] >= approved["closed_at"]) == ("ended", True)
    assert len(people.carla.output(*waiting).split()) == 2
    assert cluster.groups() == {STANDING, URGENT}


def test_a_request_that_a_changed_policy_refuses_is_shown_as_refused(
    people: AccessSite, cluster: AccessCluster
) -> None:
    request_id = cluster.ask()["id"]
    cluster.approve(request_id)
    listed = ("request", "list", "--cluster", cluster.name)
    people.operator.configure(RULES.replace('{ role = "member" }, ', '{ role = "member" }, ' * 2))
    try:
        assert eventually(lambda: "approved, refused" in people.bert.output(*listed))
        shown = " ".join(people.anna.output("request", "show", request_id).split())
        ask = ("request", "create", cluster.name, "--group", REQUESTED, "--for", "1h", "--reason", REASON)
        again = people.anna.run(*ask)
    finally:
        people.operator.configure(RULES)
        eventually(lambda: "refused" not in people.bert.output(*listed))
    message = (
        "The policy's rule repair needs other approvals now. End the access request, and create a new one."
    )
    assert f"Next {message}" in shown
    assert (again.returncode, again.stdout) == (1, "")
    assert f"You have this open request already: {request_id}. {message}" in again.stderr


def test_a_watched_list_prints_changes_until_ctrl_c(people: AccessSite, cluster: AccessCluster) -> None:
    request_id = cluster.ask()["id"]
    watch = subprocess.Popen(
        [*COMMAND, "request", "list", "--watch", "--cluster", cluster.id],
        env=people.bert.environment,
        cwd=people.bert.home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert line_with(watch.stdout, request_id[:8]).split()[:4] == [
            *(request_id[:8], "pending", "anna", f"eu-de/{cluster.name}"),
        ]
        cluster.approve(request_id, people.carla)
        assert "1 of 2" in line_with(watch.stdout, request_id[:8])
        people.anna.output("request", "end", request_id)
        assert line_with(watch.stdout, request_id[:8]).split()[1] == "gone"
    finally:
        watch.send_signal(signal.SIGINT)
        _, said = watch.communicate(timeout=SECONDS)
    assert "Traceback" not in said


def test_a_job_uses_a_request_only_if_it_names_it(
    people: AccessSite, cluster: AccessCluster, tmp_path: Path
) -> None:
    file = people.anna.home / ".config" / "clustercert" / "profiles" / "default.json"
    variables = {
        "CLUSTERCERT_URL": people.url,
        "CLUSTERCERT_TOKEN": json.loads(file.read_text())["token"],
        "CLUSTERCERT_CA_FILE": str(people.operator.folder / "service-ca.pem"),
        "HOME": str(tmp_path),
    }
    create = ("request", "create", cluster.name, "--group", REQUESTED, "--for", "1h", "--reason", REASON)
    made = people.anna.run(*create, "-o", "json", **variables)
    request_id = json.loads(made.stdout)["id"]
    assert f"`clustercert kubeconfig get --request {request_id[:8]}`" in made.stderr
    assert list(tmp_path.iterdir()) == []
    get = ("kubeconfig", "get", cluster.name, "--local-key")
    waiting = people.anna.run(*get, "--request", request_id, **variables)
    assert (waiting.returncode, "it waits for approvals" in waiting.stderr) == (1, True)
    cluster.approve(request_id)

    standing = yaml.safe_load(people.anna.run(*get, **variables).stdout)
    requested = yaml.safe_load(people.anna.run(*get, "--request", request_id[:8], **variables).stdout)

    assert REQUESTED not in str(leaf_of(standing).subject)
    assert REQUESTED in str(leaf_of(requested).subject)
    assert leaf_of(requested).not_valid_after_utc <= datetime.now(UTC) + timedelta(hours=1)
    printed = people.anna.run("credential", cluster.id, "--request", request_id[:8], **variables)
    assert policy_groups(status_of(printed.stdout)["clientCertificateData"]) == {STANDING, REQUESTED}
    assert [request for request, _ in cluster.certificates()] == [None, request_id, request_id]
    assert list(tmp_path.iterdir()) == []
    # With a saved login, the plugin finds its request by itself.
    mistaken = cluster.run_plugin("--request", request_id)
    assert (mistaken.returncode, "--request is for jobs" in mistaken.stderr) == (USAGE, True)


def test_kubectls_files_show_and_forget_the_mark(people: AccessSite, cluster: AccessCluster) -> None:
    anna = people.anna
    anna.output("kubeconfig", "merge", cluster.name)
    request_id = cluster.ask()["id"]
    context = cluster.name
    listed = {row["context"]: row for row in json.loads(anna.output("kubeconfig", "list", "-o", "json"))}
    assert listed[context]["access_request"] == request_id[:8]
    assert request_id in json.loads(anna.output("status", "-o", "json"))["access_requests"]
    # The mark of another user's login is not used.
    mark = cluster.mark.read_text()
    cluster.mark.write_text(mark.replace(b"Default/anna".hex(), b"Default/bert".hex()))
    listed = {row["context"]: row for row in json.loads(anna.output("kubeconfig", "list", "-o", "json"))}
    assert listed[context]["access_request"] is None
    assert request_id not in json.loads(anna.output("status", "-o", "json"))["access_requests"]
    cluster.mark.write_text(mark)
    anna.output("kubeconfig", "unmerge", context)
    assert not cluster.mark.exists()


def test_a_certificate_of_a_request_is_explained(people: AccessSite, cluster: AccessCluster) -> None:
    anna, request_id = people.anna, cluster.ask()["id"]
    explain = ("explain", cluster.name, "--request", request_id[:8])
    pending = anna.run(*explain)
    assert (pending.returncode, pending.stdout.splitlines()[0]) == (
        1,
        "Refused (409): The access request can't be used: it waits for approvals.",
    )
    cluster.approve(request_id)
    text = anna.output(*explain)
    assert text.startswith(
        f"Allowed: anna gets a certificate for the cluster Default/eu-de/{cluster.name}.\n"
    )
    assert re.search(r"\n  limit       20\S*Z, the end of the access request\n", text)
    assert re.search(rf"\n  yes   repair +gives {REQUESTED}\n", text)
    assert re.search(rf"\n  yes   members +gives {STANDING}\n", text)
    standing = " ".join(anna.output("explain", cluster.name).split())
    approvers = "approvers: role is member, group is leads"
    assert f"ask repair offers {REQUESTED} for at most 2 hours; {approvers}" in standing
    unknown = anna.run("explain", cluster.name, "--request", "0" * 32)
    assert unknown.returncode == NOT_FOUND
    assert "There is no such access request" in unknown.stderr


def test_a_cluster_whose_access_must_be_requested_gets_a_context(
    people: AccessSite, cluster: AccessCluster
) -> None:
    guest = people.guest
    assert guest.run("explain", cluster.name).returncode == 1
    heading, *rows = (
        re.split(r" {2,}", line) for line in guest.output("clusters", "-o", "wide").splitlines()
    )
    [row] = [dict(zip(heading, each, strict=True)) for each in rows if each[0] == cluster.name]
    assert (row["GROUPS"], row["REQUESTABLE-GROUPS"]) == ("-", REQUESTED)
    done = guest.run("kubeconfig", "merge", cluster.name)
    assert done.returncode == 0, done.stderr
    document = yaml.safe_load((guest.home / ".kube" / "config").read_text())
    [user] = [entry["user"] for entry in document["users"] if entry["name"].endswith(cluster.name)]
    arguments = user["exec"]["args"]
    plugin = arguments[arguments.index("credential") :]
    refused = guest.run(*plugin)
    assert refused.returncode != 0
    assert f"clustercert request create {cluster.name} --group {REQUESTED}" in refused.stderr
    cluster.approve(cluster.ask(user=guest)["id"])
    status = status_of(guest.output(*plugin))
    assert policy_groups(status["clientCertificateData"]) == {REQUESTED}
