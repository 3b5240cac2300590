"""Logins at an OIDC issuer that expired: renewed without the user, or with one window for all commands."""

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support import shifted_clock
from support.demo_process import interrupted
from support.exec_plugin import COMMAND, PATIENT, status_of
from support.oauth_issuer import OAuthIssuer
from support.oidc import Response, claims_of, new_key, signed
from support.oidc_users import EXEC_INFO, OidcUser, Site, running_site
from support.wait import line_with

pytestmark = pytest.mark.slow
# Commands at the same time, each in a process of its own. Twenty calls of a real kubectl are a test too.
PARALLEL = 3


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_site(tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest.fixture
def issuer(site: Site) -> OAuthIssuer:
    return site.issuer


@pytest.fixture
def user(site: Site, tmp_path: Path) -> OidcUser:
    """A user who is logged in."""
    found = OidcUser.at(site, tmp_path, f"user-{tmp_path.name[-40:].strip('-').lower()}")
    found.log_in_by_browser()
    return found


def test_a_refresh_token_renews_a_login(user: OidcUser, issuer: OAuthIssuer) -> None:
    status_of(user.credential().stdout)
    user.expire()
    used = user.tokens["refresh_token"]
    first = user.credential("--refresh", **user.browser)
    status_of(first.stdout)
    assert used not in issuer.refresh_tokens
    assert user.tokens["refresh_token"] in issuer.refresh_tokens
    # What was cached before stays valid: the login is the same.
    user.expire()
    assert user.credential().stdout == first.stdout
    assert len(user.windows) == 1


@pytest.mark.parametrize("command", [("clusters",), ("status",), ("kubeconfig", "get", "prod", "--insecure")])
def test_all_commands_renew_it(user: OidcUser, issuer: OAuthIssuer, command: tuple[str, ...]) -> None:
    user.expire()
    before = issuer.count("refresh_token")
    user.output(*command)
    assert issuer.count("refresh_token") == before + 1


def test_parallel_calls_renew_it_once(user: OidcUser, issuer: OAuthIssuer) -> None:
    user.expire()
    before = issuer.count("refresh_token")
    with ThreadPoolExecutor(PARALLEL) as pool:
        outputs = list(pool.map(lambda _: user.credential("--refresh", command=PATIENT), range(PARALLEL)))
    assert {done.returncode for done in outputs} == {0}
    assert issuer.count("refresh_token") == before + 1


def test_parallel_calls_open_one_window(user: OidcUser, issuer: OAuthIssuer) -> None:
    user.expire()
    user.end_at_the_issuer()
    logins, refreshed = len(issuer.logins), issuer.count("refresh_token")
    with ThreadPoolExecutor(PARALLEL) as pool:
        outputs = list(pool.map(lambda _: user.credential(command=PATIENT, **user.browser), range(PARALLEL)))
    assert {done.returncode for done in outputs} == {0}, outputs
    assert len({done.stdout for done in outputs}) == 1
    assert (len(user.windows), len(issuer.logins)) == (2, logins + 1)
    assert issuer.count("refresh_token") == refreshed + 1
    assert user.issued_here == 1


def test_a_failed_window_is_not_opened_again(user: OidcUser, issuer: OAuthIssuer) -> None:
    user.expire()
    user.end_at_the_issuer()
    issuer.behavior.redirect = lambda parameters: {
        "error": "access_denied", "state": parameters["state"], "iss": parameters["iss"],
    }  # fmt: skip
    with ThreadPoolExecutor(PARALLEL) as pool:
        outputs = list(pool.map(lambda _: user.credential(command=PATIENT, **user.browser), range(PARALLEL)))
    assert {(done.returncode, done.stdout) for done in outputs} == {(3, "")}
    assert len(user.windows) == 2
    later = user.credential(**user.browser)
    assert (later.returncode, len(user.windows)) == (3, 2)
    assert f"The login was denied at {issuer.url}." in later.stderr
    assert later.stderr.endswith("Run `clustercert login`.\n")
    user.be_logged_in()
    user.log_in_by_browser()
    user.expire()
    user.end_at_the_issuer()
    status_of(user.credential(**user.browser).stdout)
    assert len(user.windows) == 4


@pytest.mark.parametrize("remedy", ["clock", "merge", "--refresh"])
def test_a_window_opens_again_after_a_failure(user: OidcUser, issuer: OAuthIssuer, remedy: str) -> None:
    """After a clock that was ahead is set, and when the user renews the certificate or the context."""
    user.expire()
    user.end_at_the_issuer()
    issuer.behavior.redirect = lambda parameters: {
        "error": "access_denied", "state": parameters["state"], "iss": parameters["iss"],
    }  # fmt: skip
    command = shifted_clock.command(2) if remedy == "clock" else None
    failed = user.run(*user.plugin, command=command, env=user.by_kubectl | user.browser)
    assert (failed.returncode, len(user.windows)) == (3, 2)
    user.be_logged_in()
    match remedy:
        case "clock":
            done = user.credential(**user.browser)
        case "merge":
            done = user.run("kubeconfig", "merge", "prod", env=user.by_kubectl | user.browser)
        case _:
            done = user.credential("--refresh", **user.browser)
    assert (done.returncode, len(user.windows)) == (0, 3), done.stderr


def test_a_clock_that_is_ahead_loses_no_refresh_token(user: OidcUser, issuer: OAuthIssuer) -> None:
    """An issuer may end a refresh token when it is used."""
    failed = user.run(*user.plugin, "--refresh", command=shifted_clock.command(25))
    assert failed.returncode == 1
    assert "ahead" in failed.stderr
    assert user.tokens["refresh_token"] in issuer.refresh_tokens
    status_of(user.credential("--refresh").stdout)
    assert len(user.windows) == 1


def test_without_a_browser_it_names_the_command(user: OidcUser, issuer: OAuthIssuer) -> None:
    user.expire()
    user.end_at_the_issuer()
    expected = f"clustercert: Your login at {user.url} expired. Run `clustercert login`.\n"
    for variables in ({}, user.browser | {"CI": "true"}):
        done = user.credential(**variables)
        assert (done.returncode, done.stdout, done.stderr) == (3, "", expected)
    # Without kubectl and without a terminal, nobody may be there.
    done = user.run(*user.plugin, env=user.environment | user.browser)
    assert (done.returncode, done.stderr) == (3, expected)
    for command in (("clusters",), ("status",), ("kubeconfig", "get", "prod")):
        done = user.run(*command, env=user.environment | user.browser)
        assert (done.returncode, done.stdout) == (3, "")
        assert expected.partition(" ")[2] in done.stderr
    assert len(user.windows) == 1


def test_a_valid_certificate_is_used_before_a_window_opens(user: OidcUser) -> None:
    first = user.credential().stdout
    [cached] = [path for path in user.cache.iterdir() if path.suffix != ".lock"]
    header, _, body = cached.read_text().partition("\n")
    fields = header.split(" ")
    issued, expires = int(fields[1]), int(fields[3])
    # A tenth of the lifetime is left, so that the certificate is due.
    fields[1:3] = [str(issued - 9 * (expires - issued)), str(issued)]
    cached.write_text(f"{' '.join(fields)}\n{body}")
    user.expire()
    user.end_at_the_issuer()
    assert user.credential(**user.browser).stdout == first
    assert len(user.windows) == 1


def test_an_issuer_that_is_away(user: OidcUser, issuer: OAuthIssuer) -> None:
    user.expire()
    refresh_token = user.tokens["refresh_token"]
    issuer.behavior.responses["/token"] = Response(b"", 503)
    done = user.credential(**user.browser)
    assert (done.returncode, done.stdout) == (6, "")
    assert "status 503" in done.stderr
    assert user.tokens["refresh_token"] == refresh_token
    issuer.behavior.responses.clear()
    status_of(user.credential(**user.browser).stdout)
    assert len(user.windows) == 1


def test_nobody_else_can_log_in_in_the_window(user: OidcUser, issuer: OAuthIssuer) -> None:
    """Otherwise, kubectl would go on as that user."""
    user.credential()
    user.expire()
    user.end_at_the_issuer()
    before = user.tokens
    other = f"other-{user.name}"
    issuer.behavior.claims = {"sub": other, "preferred_username": other}
    done = user.credential("--refresh", **user.browser)
    assert (done.returncode, done.stdout) == (3, "")
    assert "Another user logged in with the browser." in done.stderr
    assert "run `clustercert login`." in done.stderr
    assert user.tokens["token"] == before["token"]


def test_a_login_that_can_not_be_saved_is_not_renewed(user: OidcUser, issuer: OAuthIssuer) -> None:
    user.expire()
    used = user.tokens["refresh_token"]
    lock = user.tokens_file.with_name("default.json.lock")
    lock.unlink(missing_ok=True)
    lock.mkdir()
    done = user.credential(**user.browser)
    assert (done.returncode, done.stdout) == (1, "")
    assert "can't be written" in done.stderr
    assert used in issuer.refresh_tokens


def test_a_token_that_the_service_refuses_is_renewed(user: OidcUser, issuer: OAuthIssuer) -> None:
    """As when the issuer withdraws its keys: the token has not expired."""
    foreign = signed(claims_of(issuer.url, sub=user.name), new_key("first"))
    user.tokens_file.write_text(json.dumps(user.tokens | {"token": foreign}))
    before = issuer.count("refresh_token")
    status_of(user.credential().stdout)
    assert issuer.count("refresh_token") == before + 1
    user.tokens_file.write_text(json.dumps(user.tokens | {"token": foreign, "refresh_token": None}))
    done = user.credential("--refresh")
    assert (done.returncode, done.stdout) == (3, "")
    assert "clustercert identity explain" in done.stderr


def test_an_issuer_that_refreshes_no_id_token(user: OidcUser, issuer: OAuthIssuer) -> None:
    issuer.behavior.token = lambda body: {name: body[name] for name in body if name != "id_token"}
    user.expire()
    done = user.credential()
    assert (done.returncode, done.stderr) == (
        3, f"clustercert: Your login at {user.url} expired. Run `clustercert login`.\n",
    )  # fmt: skip


def test_a_client_that_the_operator_replaced(user: OidcUser, issuer: OAuthIssuer) -> None:
    profile = user.home / ".config" / "clustercert" / "profiles" / "default.json"
    saved = json.loads(profile.read_text())
    saved["oidc"]["issuer"]["client_id"] = "former"
    profile.write_text(json.dumps(saved))
    user.expire()
    done = user.run("clusters")
    assert (done.returncode, done.stdout) == (3, "")
    assert "invalid_client" in done.stderr
    status_of(user.credential(**user.browser).stdout)
    assert len(user.windows) == 2
    assert json.loads(profile.read_text())["oidc"]["issuer"]["client_id"] == "clustercert"
    user.expire()
    user.output("clusters")
    assert len(user.windows) == 2


def test_a_service_that_names_another_client_gets_no_token_in_a_window(
    user: OidcUser, issuer: OAuthIssuer
) -> None:
    known = user.home / ".config" / "clustercert" / "known-services.json"
    known.write_text(known.read_text().replace('"clustercert"', '"former"'))
    user.expire()
    user.end_at_the_issuer()
    logins = len(issuer.logins)
    done = user.credential(**user.browser)
    assert (done.returncode, done.stdout, len(issuer.logins)) == (3, "", logins)
    assert f"{user.url} names the client clustercert of {issuer.url}" in done.stderr
    assert "Run `clustercert login`" in done.stderr
    user.log_in_by_browser()
    user.output("clusters")


def test_a_command_at_a_terminal_opens_a_window(user: OidcUser) -> None:
    user.expire()
    user.end_at_the_issuer()
    code, screen = user.in_terminal("clusters")
    assert code == 0, screen
    assert "prod" in screen
    assert len(user.windows) == 2


def test_ctrl_c_ends_a_plugin_that_waits_for_the_browser(user: OidcUser) -> None:
    user.expire()
    user.end_at_the_issuer()
    variables = user.uncovered | {"KUBERNETES_EXEC_INFO": EXEC_INFO, "BROWSER": "/bin/true"}
    with subprocess.Popen(
        [*COMMAND, *user.plugin], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        line_with(process.stderr, "in the browser window")
        out, rest = interrupted(process)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in rest
    later = user.credential(**user.browser)
    assert (later.returncode, len(user.windows)) == (3, 1)
    assert "was interrupted. Run `clustercert login`" in later.stderr
