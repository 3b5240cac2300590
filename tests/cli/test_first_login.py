"""The first login at a service whose CA is private."""

import json
import os
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import patch

import pytest

from clustercert.cli.login.token_storage import JOBS
from clustercert.pki.certificates import chain_pem, fingerprint
from clustercert.pki.keys import key_pem, new_key
from clustercert.server.tls_files import new_server_certificate
from support.certificate_authority import Authority
from support.command_line import CommandResult, Operator, run_in_terminal
from support.operated_cluster import SERVICE_CA
from support.remote_user import RemoteUser
from support.terminal import CTRL_C, in_a_terminal

PASSWORD = "correct horse"


@pytest.fixture
def account(made: tuple[Operator, str], tmp_path: Path) -> tuple[str, str]:
    """The service's address, and the fingerprint that it shows."""
    operator, url = made
    (tmp_path / "password").write_text(PASSWORD)
    if "Default/carol" not in operator.output("user", "list", "-o", "name").split():
        operator.output("user", "create", "carol", "--password-file", tmp_path / "password")
        operator.output("role", "assign", "reader", "--user", "carol", "--project", "eu-de")
    log_in = run(tmp_path, "login", url, "--user", "carol")
    assert log_in.code == 2
    return url, log_in.err.partition("SHA-256 fingerprint")[2].partition(": ")[2].partition("\n")[0]


def environment(home: Path) -> dict[str, str]:
    ours = ("CLUSTERCERT", "OS_", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {"HOME": str(home), "CLUSTERCERT_PASSWORD": PASSWORD}


def run(home: Path, *arguments: str, **variables: str) -> CommandResult:
    return RemoteUser(home).run(*arguments, **{"CLUSTERCERT_PASSWORD": PASSWORD, **variables})


def run_in_a_terminal(home: Path, *arguments: str, typed: str = "") -> tuple[int, str]:
    with patch.dict(os.environ, environment(home), clear=True):
        return run_in_terminal(arguments, typed, columns=200)


def test_without_a_terminal_the_fingerprint_has_to_be_given(account: tuple[str, str], tmp_path: Path) -> None:
    url, fingerprint = account
    refused = run(tmp_path, "login", url, "--user", "carol")
    assert f"add --ca-fingerprint {fingerprint} after you compared it" in refused.err
    other = run(tmp_path, "login", url, "--user", "carol", "--ca-fingerprint", "00:" * 31 + "00")
    assert (other.code, other.out) == (6, "")
    assert f"The service sends: {fingerprint}. Ask the operator" in other.err

    malformed = run(tmp_path, "login", url, "--user", "carol", "--ca-fingerprint", fingerprint[:-1])
    assert malformed.code == 2
    assert "--ca-fingerprint must be a SHA-256 fingerprint: 64 hex digits." in malformed.err

    pairs = ":".join(fingerprint[i : i + 2].upper() for i in range(0, 64, 2))
    done = run(tmp_path, "login", url, "--user", "carol", "--ca-fingerprint", pairs)
    assert done.code == 0, done.err
    assert run(tmp_path, "login").code == 0
    assert run(tmp_path, "status").code == 0


@pytest.mark.parametrize("wrong", ["ca", "address"])
def test_a_ca_file_that_does_not_fit_is_refused_with_openssls_reason(
    made: tuple[Operator, str], tmp_path: Path, wrong: str
) -> None:
    operator, url = made
    file = operator.folder / SERVICE_CA
    if wrong == "ca":
        file = tmp_path / "other.pem"
        file.write_text(Authority("other").certificate_pem.decode())
        expected = (
            f"The CA file {file} does not verify the certificate of {url} (unable to get local issuer certificate). "
            "Name the CA that signed the certificate."
        )
    else:
        url = url.replace("127.0.0.1", "localhost")
        reason = "Hostname mismatch, certificate is not valid for 'localhost'"
        expected = (
            f"The certificate of {url} is not trusted ({reason}). Use an address that the certificate names."
        )
    refused = run(tmp_path, "login", url, "--user", "carol", "--ca-file", str(file))
    assert (refused.code, refused.out) == (6, "")
    assert refused.err == f"Error: {expected}\n"


def test_a_ca_file_may_have_comments_in_any_encoding(
    account: tuple[str, str], made: tuple[Operator, str], tmp_path: Path
) -> None:
    ca = (made[0].folder / SERVICE_CA).read_bytes()
    file = tmp_path / "commented.pem"
    file.write_bytes("# Größte CA\n".encode() + "# Größte CA\n".encode("latin-1") + ca)
    done = run(tmp_path, "login", account[0], "--user", "carol", "--ca-file", str(file))
    assert done.code == 0, done.err


def test_a_ca_file_that_is_no_text_is_refused(made: tuple[Operator, str], tmp_path: Path) -> None:
    file = tmp_path / "binary.pem"
    file.write_bytes(bytes(range(256)))
    refused = run(tmp_path, "login", made[1], "--user", "carol", "--ca-file", str(file))
    assert refused.code == 1
    assert refused.err == "Error: The CA file is not a PEM file with certificates.\n"


def test_a_person_is_asked_once(account: tuple[str, str], tmp_path: Path) -> None:
    url, fingerprint = account
    login = ["login", url, "--user", "carol"]
    code, screen = run_in_a_terminal(tmp_path, *login, typed="n\n")
    assert code == 1
    assert screen.count("[y/N]") == 1
    assert fingerprint in screen
    code, screen = run_in_a_terminal(tmp_path, *login, typed=CTRL_C)
    assert code == 130
    code, screen = run_in_a_terminal(tmp_path, *login, typed="y\n")
    assert code == 0, screen
    code, screen = run_in_a_terminal(tmp_path, "login")
    assert code == 0
    assert "fingerprint" not in screen
    # A new profile uses the only known service, and its CA.
    for more in ([], [url]):
        code, screen = run_in_a_terminal(
            tmp_path, "login", *more, "--user", "carol", "--profile", f"p{len(more)}"
        )
        assert code == 0, screen
        assert f"Trusting the certificate of {url}, as the profile default does." in screen
        assert (f"Logging in at {url}, the service of your other profiles." in screen) is not bool(more)
    saved = tmp_path / ".config" / "clustercert" / "profiles"
    assert len({json.loads(path.read_text())["ca_pem"] for path in saved.glob("*.json")}) == 1


def test_a_password_can_be_typed_three_times_and_trust_is_kept(
    account: tuple[str, str], tmp_path: Path
) -> None:
    url, fingerprint = account
    variables = {
        name: value for name, value in environment(tmp_path).items() if name != "CLUSTERCERT_PASSWORD"
    }
    refusal = (
        "Wrong user name or password. The user was looked up in the domain Default."
        " For a user of another domain, add --user DOMAIN/carol."
    )
    second = f"{refusal} Type the password again, or press Ctrl-C to leave.\r\nPassword: "
    wrong = {"Password: ": "a\n", second: "b\n", f"{second}\r\n{second}": "c\n"}
    # The address may lack https://, as people type it.
    login = ["login", url.removeprefix("https://"), "--user", "carol"]
    code, screen = in_a_terminal(login, {"[y/N]": "y\n", **wrong}, variables)
    assert (code, screen.count(refusal), fingerprint in screen) == (3, 3, True)
    assert screen.endswith(f"Error: {refusal}\r\n")
    listed = run(tmp_path, "profile", "list", "-o", "json")
    assert [(each["service"], each["user"], each["logged_in"]) for each in json.loads(listed.out)] == [
        (url, None, False)
    ]
    assert run(tmp_path, "status").err == f"Error: You are not logged in at {url}. Run `clustercert login`.\n"
    # Neither the address nor the certificate is asked for again.
    again = ["login", "--user", "carol"]
    code, screen = in_a_terminal(again, {"Password: ": CTRL_C}, variables)
    assert (code, fingerprint in screen) == (130, False)
    typed = {"Password: ": "a\n", second: f"{PASSWORD}\n"}
    code, screen = in_a_terminal(again, typed, variables)
    assert (code, "Logged in as Default/carol in the project Default/eu-de until" in screen) == (0, True), (
        screen
    )
    assert "was the login of" not in screen


def test_a_login_that_can_ask_nothing_leaves_no_profile(account: tuple[str, str], tmp_path: Path) -> None:
    url, fingerprint = account
    login = ("login", url, "--ca-fingerprint", fingerprint)
    for more in (("--user", "carol"), (), ("--access-key", "AK", "--device")):
        refused = run(tmp_path, *login, *more, "--profile", "new", CLUSTERCERT_PASSWORD="")
        assert (refused.code, refused.out) == (2, "")
        assert run(tmp_path, "profile", "list", "-o", "json").out == "[]\n"
    # A login that was there before stays.
    assert run(tmp_path, *login, "--user", "carol").code == 0
    assert run(tmp_path, *login, "--user", "carol", CLUSTERCERT_PASSWORD="").code == 2
    assert run(tmp_path, "status").code == 0


def test_a_newcomer_is_told_to_log_in(tmp_path: Path) -> None:
    done = run(tmp_path, "clusters")
    assert (done.code, done.out) == (3, "")
    assert done.err == f"Error: You are not logged in. Run `clustercert login URL`. {JOBS}\n"


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Write nothing to the standard error of this process, where the commands of these tests write too."""


class QuietHandler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the standard library
        """Write nothing, as the server does."""


@contextmanager
def tls_server(folder: Path, chain: bytes, key: bytes) -> Iterator[str]:
    """The address of a server that sends these certificates. It answers every request with an error."""
    (folder / "certificate.pem").write_bytes(chain)
    (folder / "key.pem").write_bytes(key)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    with QuietServer(("127.0.0.1", 0), QuietHandler) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("sent", ["issuer", "leaf", "stranger"])
def test_the_leafs_fingerprint_is_refused_if_the_service_sends_the_leafs_issuer(
    tmp_path: Path, sent: str
) -> None:
    now, key = datetime.now(UTC).replace(microsecond=0), new_key("ec-p256")
    leaf, issuer = new_server_certificate(key, ["127.0.0.1"], now, timedelta(days=1))
    _, stranger = new_server_certificate(key, ["127.0.0.1"], now, timedelta(days=1))
    chain = {"issuer": (leaf, issuer), "leaf": (leaf,), "stranger": (leaf, stranger)}[sent]
    given = fingerprint(leaf).hex()
    with tls_server(tmp_path, chain_pem(chain), key_pem(key)) as url:
        by_leaf = run(tmp_path, "login", url, "--user", "carol", "--ca-fingerprint", given)
        by_issuer = run(
            tmp_path, "login", url, "--user", "carol", "--ca-fingerprint", fingerprint(issuer).hex()
        )
    refusal = (
        f"Error: {given} is the fingerprint of the certificate of {url}, and changes at each renewal. Compare the"
        f" fingerprint of its issuer, {fingerprint(issuer).hex()}, with the one that the operator of the service gives"
        " you, and give the issuer's fingerprint instead.\n"
    )
    assert by_leaf.code == 1
    assert (by_leaf.err == refusal) is (sent == "issuer"), by_leaf.err
    # The accepted fingerprint leads to the next step of the login, which this server does not answer.
    assert ("fingerprint" in by_issuer.err) is (sent != "issuer"), by_issuer.err


def test_a_certificate_of_the_future_is_explained_once(tmp_path: Path) -> None:
    now = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    key = new_key("ec-p256")
    leaf, ca = new_server_certificate(key, ["127.0.0.1"], now, timedelta(days=1))
    with tls_server(tmp_path, chain_pem((leaf, ca)), key_pem(key)) as url:
        done = run(tmp_path, "login", url)
    assert (done.code, done.out) == (6, "")
    assert re.fullmatch(
        r"Error: The certificate of https://127\.0\.0\.1:[0-9]+ is not trusted \(certificate is not yet valid\)\. The "
        r"clock of this machine says 20[0-9-]+T[0-9:]+Z\. If this is wrong, correct the clock\. Otherwise, ask the "
        r"operator of the service for a valid certificate\.\n",
        done.err,
    ), done.err


def test_a_refused_access_key_names_what_to_check(account: tuple[str, str], tmp_path: Path) -> None:
    url, fingerprint = account
    secret = tmp_path / "secret"
    secret.write_text("wrong", encoding="utf-8")
    key = ("--access-key", "NOSUCHKEY", "--secret-file", str(secret))
    done = run(tmp_path, "login", url, *key, "--ca-fingerprint", fingerprint)
    assert done.code == 3
    assert done.err.endswith(" Check the access key, its secret, and the clock of this machine.\n")


def test_a_misspelled_variable_is_a_warning(account: tuple[str, str], tmp_path: Path) -> None:
    url, fingerprint = account
    commands = (
        ("login", url, "--user", "carol", "--ca-fingerprint", fingerprint),
        ("status",),
        ("profile", "list"),
        ("profile", "use", "default"),
        ("refresh",),
        ("kubeconfig", "list"),
        ("kubeconfig", "unmerge", "--all"),
        ("logout",),
    )
    for command in commands:
        done = run(tmp_path, *command, CLUSTERCERT_PROFLE="work", KUBECONFIG=str(tmp_path / "kubeconfig"))
        assert done.code == 0, done.err
        warnings = [line for line in done.err.splitlines() if line.startswith("Warning: ")]
        assert len(warnings) == 1, command
        assert warnings[0].endswith(
            " CLUSTERCERT_PROFLE is not a setting and has no effect. Did you mean CLUSTERCERT_PROFILE?"
        )
