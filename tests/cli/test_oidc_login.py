"""`clustercert login` at an OIDC issuer, and what follows."""

import json
import re
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from support.demo_process import interrupted
from support.exec_plugin import PASSWORD, Done, User, status_of
from support.login_browser import new_browser
from support.oauth_issuer import OAuthIssuer
from support.oidc import IssuerServer, Response, new_key
from support.oidc_users import OidcUser, Site, logging_in, private_files, running_site
from support.operated_cluster import SERVICE_CA
from support.page_steps import Reader, steps_below
from support.wait import SECONDS, eventually, line_with

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IssuerServer]:
    """A server that tests give the answers of a service. The genuine one lists its address."""
    with IssuerServer(tmp_path_factory.mktemp("other")).running() as running:
        yield running


@pytest.fixture(scope="module")
def site(other: IssuerServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_site(tmp_path_factory.mktemp("site"), other.url) as running:
        yield running


@pytest.fixture
def false(site: Site, tmp_path: Path) -> Iterator[IssuerServer]:
    """A false service that names the issuer and client of the genuine one, and both addresses as its own."""
    with IssuerServer(tmp_path).running() as running:
        describe_as(running, site, running.url, site.url)
        yield running


def describe_as(server: IssuerServer, site: Site, *urls: str) -> None:
    """Let a server describe its issuers as the genuine service does."""
    tls = ssl.create_default_context(cafile=str(site.operator.folder / SERVICE_CA))
    path = f"{site.url}/clustercert/v1/issuers"
    offer = httpx2.get(path, verify=tls, trust_env=False, timeout=SECONDS).json()
    server.responses["/clustercert/v1/issuers"] = Response(json.dumps(offer | {"urls": urls}).encode())


@pytest.fixture
def user(site: Site, tmp_path: Path) -> OidcUser:
    return OidcUser.at(site, tmp_path, f"user-{tmp_path.name[-40:].strip('-').lower()}")


@pytest.fixture
def issuer(site: Site) -> OAuthIssuer:
    return site.issuer


def test_a_person_logs_in_once_for_everything(user: OidcUser, issuer: OAuthIssuer) -> None:
    done = user.log_in_by_browser()

    assert f"Logged in as sso/{user.name} in" in done.stderr
    [address] = user.windows
    assert f"open this address once, in a browser on this machine:\n  {address}\n" in done.stderr
    assert set(private_files(user.home / ".config").values()) == {"0o600"}
    secrets = [user.tokens["token"], user.tokens["refresh_token"]]
    profile = user.home / ".config" / "clustercert" / "profiles" / "default.json"
    assert not any(secret in text for secret in secrets for text in (done.stderr, profile.read_text()))
    status = json.loads(user.output("status", "-o", "json"))
    assert (status["user"], status["method"]) == (f"sso/{user.name}", "OIDC issuer sso")
    assert "current-context" in user.output("kubeconfig", "get", "prod", "--insecure")
    [listed] = json.loads(user.output("profile", "list", "-o", "json"))
    assert (listed["logged_in"], listed["expires_at"]) == (True, None)
    assert user.run("logout").returncode == 0
    assert secrets[1] not in issuer.refresh_tokens
    assert not user.tokens_file.exists()
    assert user.run("status").returncode == 3


@pytest.mark.full
def test_the_pages_show_a_login_and_how_an_operator_ends_it(user: OidcUser, issuer: OAuthIssuer) -> None:
    [login] = steps_below("docs/login.md", "In the browser")
    [blocking] = steps_below("docs/administration.md", "A colleague leaves")
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    words = {
        "clustercert login https://clustercert.example.com": f"clustercert login {user.url} {' '.join(user.ca_option)}",
        "https://clustercert.example.com": user.url,
        "https://sso.example.com/realms/acme": issuer.url,
        "https://sso.example.com": issuer.url,
        "clustercert user block": f"clustercert --config {user.operator.config} user block --local",
        "alice": user.name,
        "anna": user.name,
    }
    person = Reader(user.home, words, {**user.environment, **user.browser, "PATH": path}, columns=100)
    person.follow_steps(login)
    for _ in range(2):
        user.output("kubeconfig", "get", "prod", "--insecure")
    person.follow_steps(blocking)


def test_a_lost_laptop_is_logged_out_from_another_machine(user: OidcUser, issuer: OAuthIssuer) -> None:
    laptop = user.environment | {"XDG_CONFIG_HOME": str(user.home / "laptop")}
    issuer.behavior.claims |= {"auth_time": int(time.time()) - 30}
    trust = (user.url, *user.ca_option, "--allow-service", user.url)
    assert user.run("login", *trust, env=laptop | user.browser).returncode == 0
    user.log_in_by_browser()

    asked = user.run("logout", "--everywhere")
    assert asked.returncode == 2
    assert f"This ends all logins of sso/{user.name} (" in asked.stderr
    done = user.run("logout", "--everywhere", "--yes")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert f"Ended all logins of sso/{user.name} at {user.url}, and revoked 0 certificates." in done.stderr
    assert f"Log out at {issuer.url} too." in done.stderr
    assert "To log in again, wait until that" in done.stderr
    assert user.run("status").returncode == 3
    assert not user.tokens_file.exists()
    # The refresh token of the laptop gives a token of the same login.
    assert user.run("status", env=laptop).returncode == 3
    refused = user.run("login", env=user.environment | user.browser)
    assert refused.returncode == 3
    assert "wait until the time that `logout --everywhere` printed" in refused.stderr
    assert "--reauthenticate" in refused.stderr

    issuer.behavior.claims |= {"auth_time": int(time.time()) + 60, "iat": int(time.time()) + 60}
    again = user.run("login", "--reauthenticate", env=user.environment | user.browser)
    assert again.returncode == 0, again.stderr
    assert [login.get("prompt") for login in issuer.logins[-2:]] == [None, "login"]


def test_a_user_of_an_issuer_is_named_like_any_other(user: OidcUser) -> None:
    operator, name = user.operator, f"sso/{user.name}"
    user.log_in_by_browser()
    assert user.credential().returncode == 0
    user_id = json.loads(user.output("status", "-o", "json"))["user_id"]
    at_the_cluster = ("--user", name, "--cluster", "prod", "--yes")
    assert user.run("certificate", "revoke", *at_the_cluster).returncode == 0
    assert "live" not in user.output("certificate", "list", "--state", "live", "-o", "csv")
    assert user.credential("--refresh").returncode == 0
    operator.output("certificate", "revoke", *at_the_cluster)
    assert user.credential("--refresh").returncode == 0
    for revoke in (user.output, operator.output):
        revoke("certificate", "revoke", "--user", name, "--everywhere", "--yes")
        assert user.credential("--refresh").returncode == 0
    revocations = operator.output_json("certificate", "revocations", "--user", name)
    assert {each["user_id"] for each in revocations} == {user_id}
    listed = operator.output_json("certificate", "list", "--all", "--user", name)
    assert {each["user_id"] for each in listed} == {user_id}
    report = operator.output_json("certificate", "access", "--cluster", "prod", "--user", name)
    assert [each["user_id"] for each in report["users"]] == [user_id]
    explained = operator.output("policy", "explain", "prod", "--user", name)
    assert explained.startswith(f"Allowed: {name} gets a certificate")
    assert "the time of the user's last recorded request" in " ".join(explained.split())

    blocked = operator.run("user", "block", name, "--yes").err
    assert f"Blocked the user {name}. Their logins have ended." in blocked
    assert f"The user's session at {user.site.issuer.url} is still active" in blocked
    assert "\nprod (" in blocked
    eventually(lambda: user.run("status").returncode == 3)
    assert user.credential("--refresh").returncode != 0
    operator.output("user", "unblock", name)
    eventually(lambda: user.run("status").returncode == 0)


def test_where_an_issuer_names_no_time_the_logout_says_what_remains(
    user: OidcUser, issuer: OAuthIssuer
) -> None:
    user.log_in_by_browser()
    done = user.run("logout", "--everywhere", "--yes")
    assert done.returncode == 0, done.stderr
    assert f"refresh token can still log in, because {issuer.url} does not say when" in done.stderr
    assert f"only an operator can stop such logins: `clustercert user block sso/{user.name}`" in done.stderr


def test_the_password_of_a_user_of_an_issuer_is_changed_there(user: OidcUser, issuer: OAuthIssuer) -> None:
    user.log_in_by_browser()
    done = user.run("password")
    assert done.returncode == 1
    assert f"is not at {user.site.url}, but at {issuer.url}. Change the password there." in done.stderr


def test_the_next_login_needs_no_options(user: OidcUser) -> None:
    user.log_in_by_browser()
    assert user.run("logout").returncode == 0
    done = user.run("login", env=user.environment | user.browser)
    assert done.returncode == 0, done.stderr
    assert len(user.windows) == 2


def log_in_at(user: OidcUser, server: IssuerServer, *options: str) -> Done:
    trust = ("--ca-file", str(server.ca_file), *options)
    return user.run("login", server.url, *trust, env=user.environment | user.browser)


@pytest.mark.parametrize("option", [(), ("--device",)])
def test_a_false_service_gets_no_token(
    user: OidcUser, issuer: OAuthIssuer, false: IssuerServer, option: tuple[str, ...]
) -> None:
    user.log_in_by_browser()
    logins, posted = len(issuer.logins), len(issuer.forms)
    done = log_in_at(user, false, *option)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"whose tokens {user.url} accepts too" in done.stderr
    assert f"add --allow-service {false.url}" in done.stderr
    code, screen = user.in_terminal("login", false.url, "--ca-file", false.ca_file, *option)
    assert (code, "accepts too" in screen) == (1, True)
    # Neither the issuer nor the false service was asked for anything else.
    assert (len(issuer.logins), len(issuer.forms), len(user.windows)) == (logins, posted, 1)
    # The time of the answer to /healthz shows whether this machine's clock is wrong.
    assert set(false.requests) == {"/clustercert/v1/issuers", "/healthz"}
    assert json.loads(user.output("status", "-o", "json"))["user"] == f"sso/{user.name}"


def test_a_first_login_asks_where_the_token_goes(user: OidcUser, issuer: OAuthIssuer) -> None:
    logins = len(issuer.logins)
    refused = user.run("login", user.url, *user.ca_option, env=user.environment | user.browser)
    assert (refused.returncode, len(issuer.logins)) == (2, logins)
    assert f"add --allow-service {user.url}" in refused.stderr
    login = ("login", user.url, *user.ca_option)
    code, screen = user.in_terminal(*login, typed="n\n")
    assert (code, len(issuer.logins)) == (1, logins)
    assert f"{user.url} will receive the token of your login at {issuer.url} (client clustercert)." in screen
    code, screen = user.in_terminal(*login, typed="y\n")
    assert (code, len(issuer.logins)) == (0, logins + 1), screen
    code, screen = user.in_terminal(*login)
    assert (code, "gets the token" in screen) == (0, False)
    assert user.run("logout", "--forget").returncode == 0
    forgotten = user.run("login", user.url, *user.ca_option, env=user.environment | user.browser)
    assert (forgotten.returncode, "--allow-service" in forgotten.stderr) == (2, True)


def test_an_address_that_the_service_lists_needs_no_answer(
    user: OidcUser, issuer: OAuthIssuer, other: IssuerServer, site: Site
) -> None:
    describe_as(other, site)
    before = log_in_at(user, other)
    assert f"add --allow-service {other.url}" in before.stderr
    user.log_in_by_browser()
    logins = len(issuer.logins)
    done = log_in_at(user, other)
    # This server has no other answers than those about issuers.
    assert (len(issuer.logins), done.returncode) == (logins + 1, 1)
    assert "is not a clustercert service" in done.stderr
    assert "--allow-service" not in done.stderr


def test_nothing_secret_is_shown(user: OidcUser) -> None:
    done = user.log_in_by_browser("--verbose")
    assert "/token: 200" in done.stderr
    user.expire()
    old = user.tokens["refresh_token"]
    renewed = user.run("clusters", "--verbose")
    assert "/token: 200" in renewed.stderr
    shown = done.stderr + renewed.stderr + renewed.stdout
    assert not any(secret in shown for secret in (user.tokens["token"], user.tokens["refresh_token"], old))
    [window] = user.windows
    assert not re.search("state|nonce|code", window)


def test_without_a_browser_the_address_is_printed(user: OidcUser, issuer: OAuthIssuer) -> None:
    with logging_in(user) as process:
        address = line_with(process.stderr, "http://127.0.0.1:").strip()
        page = new_browser(issuer.ca_file).get(address)
        _, rest = process.communicate(timeout=300)
    assert process.returncode == 0, rest
    assert "You are logged in" in page.text


def test_ctrl_c_ends_the_login(user: OidcUser) -> None:
    with logging_in(user, env=user.uncovered) as process:
        line_with(process.stderr, "http://127.0.0.1:")
        _, rest = interrupted(process)
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert not user.tokens_file.exists()


def test_a_login_by_device_code(user: OidcUser, issuer: OAuthIssuer) -> None:
    issuer.behavior.device = ["authorization_pending"]
    done = user.run("login", user.url, *user.trust, "--device")
    assert done.returncode == 0, done.stderr
    assert "WDJB-MJHT" in done.stderr
    assert f"{issuer.url}/enter" in done.stderr
    assert json.loads(user.output("status", "-o", "json"))["user"] == f"sso/{user.name}"


def test_a_denied_login(user: OidcUser, issuer: OAuthIssuer) -> None:
    issuer.behavior.device = ["access_denied"]
    done = user.run("login", user.url, *user.trust, "--device")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.endswith(
        f"Error: The login was denied at {issuer.url}. Log in again, and allow the login.\n"
    )


def test_the_service_refuses_the_token(user: OidcUser, issuer: OAuthIssuer) -> None:
    issuer.behavior.claims["iat"] = 1_000_000_000
    done = user.run("login", user.url, *user.trust, env=user.environment | user.browser)
    assert (done.returncode, done.stdout) == (3, "")
    assert "clustercert identity explain" in done.stderr
    assert "The token is for the audience clustercert, and expires at 20" in done.stderr
    assert re.search("request [0-9a-f]{32}", done.stderr)
    assert not user.tokens_file.exists()


def test_in_ci_nobody_is_asked(user: OidcUser, issuer: OAuthIssuer) -> None:
    variables = user.environment | user.browser
    done = user.run("login", user.url, *user.ca_option, env=variables, CI="true")
    assert (done.returncode, user.windows) == (1, [])
    assert "CLUSTERCERT_TOKEN" in done.stderr


def test_ci_jobs_use_a_token_without_a_login(user: OidcUser, issuer: OAuthIssuer) -> None:
    variables = {
        "CI": "true",
        "CLUSTERCERT_URL": user.url,
        "CLUSTERCERT_TOKEN": issuer.token(sub=user.name, preferred_username=user.name),
        "CLUSTERCERT_CA_FILE": str(user.operator.folder / SERVICE_CA),
    }
    assert json.loads(user.output("status", "-o", "json", **variables))["user"] == f"sso/{user.name}"
    assert "current-context" in user.output("kubeconfig", "get", "prod", "--insecure", **variables)
    status_of(user.output(*user.plugin, **variables))
    assert user.issued_here == 2
    expired = issuer.token(sub=user.name, iat=1_000_000_000, exp=1_000_000_300)
    refused = user.run(*user.plugin, env=user.environment | variables | {"CLUSTERCERT_TOKEN": expired})
    assert (refused.returncode, refused.stdout) == (3, "")
    assert "does not accept the token" in refused.stderr
    assert "The token expired at 2001-09-09T01:51:40Z, so use a new token." in refused.stderr
    assert [path for path in user.home.rglob("*") if path.is_file() and path.name != "browser"] == []


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_ci_jobs_give_a_token(user: OidcUser, issuer: OAuthIssuer, source: str) -> None:
    token = issuer.token(sub=user.name, preferred_username=user.name)
    (user.home / "token").write_text(token + "\n")
    options = {"file": ("--token-file", "token"), "stdin": ("--token-file", "-")}[source]
    done = user.run("login", user.url, *user.ca_option, *options, stdin=token, CI="true")
    assert done.returncode == 0, done.stderr
    assert token not in done.stderr
    status_of(user.credential().stdout)
    user.expire()
    (user.home / "token").write_text(issuer.token(sub=user.name))
    renewed = user.credential("--refresh")
    if source == "file":
        status_of(renewed.stdout)
    else:
        assert (renewed.returncode, renewed.stdout) == (3, "")
        assert "expired. Run `clustercert login`" in renewed.stderr


@pytest.mark.parametrize(
    ("token", "text"),
    [("opaque", "Give a JWT"), ("a.b.c", "Give a JWT"), ("a." + "b" * 20_000 + ".c", "16 KiB")],
)
def test_what_is_no_token_is_not_sent(user: OidcUser, token: str, text: str) -> None:
    done = user.run("login", user.url, *user.ca_option, "--token-file", "-", stdin=token)
    assert (done.returncode, done.stdout) == (1, "")
    assert text in done.stderr


def test_a_token_of_another_user_does_not_renew_a_login(user: OidcUser, issuer: OAuthIssuer) -> None:
    (user.home / "token").write_text(issuer.token(sub=user.name))
    assert user.run("login", user.url, *user.ca_option, "--token-file", "token").returncode == 0
    user.expire()
    (user.home / "token").write_text(issuer.token(sub="mallory"))
    done = user.credential()
    assert (done.returncode, done.stdout) == (3, "")
    assert "another user" in done.stderr


def test_passwords_go_on(site: Site, user: OidcUser, tmp_path: Path) -> None:
    name = f"builtin-{user.name}"
    builtin = User.create(site.operator, site.url, tmp_path / "builtin", name)
    builtin.log_in()
    password = tmp_path / "builtin" / "password"
    again = builtin.run("login", "--password-file", password)
    assert again.returncode == 0, again.stderr
    assert f"as Default/{name}" in again.stderr
    done = builtin.run("login", env=builtin.environment | {"CLUSTERCERT_PASSWORD": PASSWORD})
    assert done.returncode == 0, done.stderr
    other = builtin.run("login", "--user", name, "--device")
    assert other.returncode == 2


def test_an_unknown_issuer(user: OidcUser) -> None:
    done = user.run("login", user.url, *user.ca_option, "--issuer", "ssso")
    assert (done.returncode, done.stdout) == (5, "")
    assert "Did you mean sso?" in done.stderr


@pytest.mark.full
def test_new_keys_of_the_issuer_cost_no_second_login(user: OidcUser, issuer: OAuthIssuer) -> None:
    """The service fetches keys at most every 30 seconds, so a login may have to wait."""
    for number in range(2):
        issuer.publish(*issuer.keys, new_key(f"rotated-{number}-{user.name}"))
        issuer.publish_document()
        user.log_in_by_browser()
    assert len(user.windows) == 2
