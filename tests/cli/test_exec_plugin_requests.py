"""The exec plugin and access requests: it finds approval and end by itself, and asks rarely."""

import time
from concurrent.futures import ThreadPoolExecutor

from support.access_site import REQUESTED, STANDING, URGENT, AccessCluster, policy_groups
from support.exec_plugin import FORBIDDEN, PATIENT, status_of

PARALLEL = 8


def test_approval_and_early_end_are_found_at_the_next_command(cluster: AccessCluster) -> None:
    assert cluster.groups() == {STANDING}
    request_id = cluster.ask()["id"]
    assert cluster.groups() == {STANDING}
    assert cluster.certificates() == [(None, 0)], "the standing certificate stays in use"

    cluster.approve(request_id)
    cluster.make_due()
    first = cluster.run_plugin()
    assert policy_groups(status_of(first.stdout)["clientCertificateData"]) == {STANDING, REQUESTED}
    assert first.stderr.startswith(
        f"clustercert: kubectl uses the access request {request_id[:8]} now. The certificate is valid until "
    )
    assert cluster.groups() == {STANDING, REQUESTED}
    assert len(cluster.certificates()) == 2

    cluster.site.carla.output("request", "end", request_id, "--reason", "that is enough")
    cluster.make_due()
    last = cluster.run_plugin()
    assert policy_groups(status_of(last.stdout)["clientCertificateData"]) == {STANDING}
    assert last.stderr == (
        f"clustercert: The access request {request_id[:8]} is over. The access was ended by Default/carla: that is"
        " enough.\n"
    )
    assert not cluster.mark.exists()
    assert cluster.run_plugin().stderr == ""
    assert cluster.certificates() == [(None, 0), (request_id, 1), (None, 0)]


def test_a_request_from_elsewhere_is_found_with_the_next_certificate(cluster: AccessCluster) -> None:
    assert cluster.groups() == {STANDING}
    request_id = cluster.ask()["id"]
    cluster.approve(request_id)
    # As if the request came from the console.
    cluster.mark.unlink()
    assert cluster.groups() == {STANDING}, "the cached certificate is used without a question"
    cluster.cache_file.unlink()
    done = cluster.run_plugin()
    assert policy_groups(status_of(done.stdout)["clientCertificateData"]) == {STANDING, REQUESTED}
    assert f"kubectl uses the access request {request_id[:8]} now." in done.stderr
    cluster.site.anna.output("request", "end", request_id)
    assert cluster.groups() == {STANDING}
    assert not cluster.mark.exists()


def test_an_approval_of_a_request_from_elsewhere_is_noticed(cluster: AccessCluster) -> None:
    request_id = cluster.ask()["id"]
    cluster.mark.unlink()
    assert cluster.groups() == {STANDING}
    assert cluster.mark.exists()
    cluster.approve(request_id)
    cluster.make_due()
    assert cluster.groups() == {STANDING, REQUESTED}


def test_the_first_command_after_an_end_on_this_machine_has_standing_groups(cluster: AccessCluster) -> None:
    request_id = cluster.ask()["id"]
    cluster.approve(request_id)
    assert cluster.groups() == {STANDING, REQUESTED}
    # The plugin asked a moment ago, and would not ask again for a while.
    fields = cluster.mark.read_text().split(" ")
    cluster.mark.write_text(" ".join([fields[0], f"{time.time() + 50:.3f}", *fields[2:]]))
    cluster.site.anna.output("request", "end", request_id)
    done = cluster.run_plugin()
    assert policy_groups(status_of(done.stdout)["clientCertificateData"]) == {STANDING}
    assert f"The access request {request_id[:8]} is over." in done.stderr
    assert not cluster.mark.exists()


def test_a_denied_request_is_forgotten(cluster: AccessCluster) -> None:
    request_id = cluster.ask()["id"]
    cluster.site.bert.output("request", "deny", request_id, "--reason", "no")
    done = cluster.run_plugin()
    assert policy_groups(status_of(done.stdout)["clientCertificateData"]) == {STANDING}
    assert "is over. The request was denied by Default/bert: no." in done.stderr
    assert not cluster.mark.exists()


def test_urgent_access_is_used_before_the_approval_and_ends_with_a_denial(cluster: AccessCluster) -> None:
    asked = cluster.ask(group=URGENT)
    assert cluster.groups() == {STANDING, URGENT}
    cluster.site.carla.output("request", "deny", asked["id"], "--reason", "no")
    assert cluster.groups() == {STANDING}
    assert cluster.certificates()[0] == (asked["id"], 1)


def test_without_standing_access_the_message_says_how_to_ask(cluster: AccessCluster) -> None:
    guest = cluster.site.guest
    refused = cluster.run_plugin(user=guest)
    assert (refused.returncode, refused.stdout) == (FORBIDDEN, "")
    assert (
        f"clustercert request create {cluster.name} --group {REQUESTED} --for 1h --reason REASON"
        in refused.stderr
    )
    request_id = cluster.ask(user=guest)["id"]
    waiting = cluster.run_plugin(user=guest)
    assert waiting.returncode == FORBIDDEN
    assert (
        f"`clustercert request show {request_id[:8]}` shows how far your access request is." in waiting.stderr
    )
    cluster.approve(request_id)
    cached = cluster.cache_file_of(guest)
    # An equal request lets the plugin ask at once.
    cluster.ask(user=guest)
    done = cluster.run_plugin(user=guest)
    assert policy_groups(status_of(done.stdout)["clientCertificateData"]) == {REQUESTED}
    guest.output("request", "end", request_id)
    # Without the mark, the cached certificate names the request.
    cached.with_name(f"{cached.name}.request").unlink()
    ended = cluster.run_plugin(user=guest)
    assert (ended.returncode, ended.stdout) == (FORBIDDEN, "")
    assert not cached.exists()


def test_parallel_calls_ask_once_in_two_seconds(cluster: AccessCluster) -> None:
    cluster.ask()
    cluster.groups()
    cluster.make_due()

    def call(_: int) -> tuple[int, str]:
        done = cluster.site.anna.run(*cluster.plugin, command=PATIENT)
        return done.returncode, cluster.mark.read_text().split(" ")[1]

    started = time.monotonic()
    with ThreadPoolExecutor(PARALLEL) as pool:
        results = list(pool.map(call, range(PARALLEL)))
    seconds = time.monotonic() - started

    assert {code for code, _ in results} == {0}
    assert len({asked for _, asked in results}) <= 1 + seconds / 2
    assert cluster.certificates() == [(None, 0)]


def test_without_the_service_a_valid_certificate_is_used(cluster: AccessCluster) -> None:
    request_id = cluster.ask()["id"]
    cluster.approve(request_id)
    assert cluster.groups() == {STANDING, REQUESTED}
    body = cluster.run_plugin().stdout
    profile = cluster.site.anna.home / ".config" / "clustercert" / "profiles" / "default.json"
    saved, before = profile.read_text(), profile.stat()
    header, _, rest = cluster.cache_file.read_text().partition("\n")
    profile.write_text(saved.replace(cluster.site.url, "https://127.0.0.1:9"))
    try:
        # The cached certificate belongs to this version of the login.
        status = profile.stat()
        fields = [*header.split(" ")[:-2], f"{status.st_mtime_ns}:{status.st_ino}", str(profile)]
        cluster.cache_file.write_text(f"{' '.join(fields)}\n{rest}")
        cluster.make_due()
        away = cluster.run_plugin()
    finally:
        profile.write_text(saved)
    assert before.st_ino == profile.stat().st_ino
    assert (away.returncode, away.stdout, away.stderr) == (0, body, "")
    assert float(cluster.mark.read_text().split(" ")[1]) > time.time() - 60


def test_a_request_that_the_service_does_not_know_is_forgotten(cluster: AccessCluster) -> None:
    request_id = cluster.ask()["id"]
    cluster.mark.write_text(cluster.mark.read_text().replace(request_id, "0" * 32))
    done = cluster.run_plugin()
    assert policy_groups(status_of(done.stdout)["clientCertificateData"]) == {STANDING}
    assert "The access request 00000000 is over. The service does not know it." in done.stderr
    assert request_id in cluster.mark.read_text(), "the open request is found"


def test_a_request_that_ended_since_the_last_question_is_not_needed(cluster: AccessCluster) -> None:
    request_id = cluster.ask()["id"]
    cluster.approve(request_id)
    cluster.site.anna.output("request", "end", request_id)
    # The plugin asked a moment ago, and the request was usable.
    fields = cluster.mark.read_text().split(" ")
    cluster.mark.write_text(" ".join([fields[0], f"{time.time() + 50:.3f}", "usable", *fields[3:]]))
    done = cluster.run_plugin()
    assert policy_groups(status_of(done.stdout)["clientCertificateData"]) == {STANDING}
    assert f"The access request {request_id[:8]} was not used: " in done.stderr
    assert not cluster.mark.exists()


def test_the_mark_of_another_user_is_not_used(cluster: AccessCluster) -> None:
    request_id = cluster.ask()["id"]
    mark = cluster.mark.read_text().replace(b"Default/anna".hex(), b"Default/bert".hex())
    cluster.site.anna.output("request", "end", request_id)
    cluster.mark.write_text(mark)
    for _ in range(2):
        done = cluster.run_plugin()
        assert policy_groups(status_of(done.stdout)["clientCertificateData"]) == {STANDING}
    assert cluster.mark.read_text() == mark
