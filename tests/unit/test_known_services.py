"""The services to which a login's token may go."""

import json
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from clustercert.cli.login import profile, trust
from clustercert.cli.login.trust import accept, forget, is_known, remember
from clustercert.cli.options import CommandError, NotLoggedIn, UsageError
from clustercert.client.oidc.issuer import LoginIssuer
from clustercert.model.login_client import LoginClient

URL, OTHER, FALSE = (f"https://{name}.example.com" for name in ("service", "other", "false"))
SSO = LoginIssuer("sso", "https://sso.example.com", LoginClient("clustercert", ("openid",)))


def with_client(**changed: object) -> LoginIssuer:
    return replace(SSO, client=replace(SSO.client, **changed))  # type: ignore[arg-type] # the tests' values fit


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


def log_in(url: str, issuer: LoginIssuer = SSO, *urls: str, allowed: str | None = None) -> None:
    accept(url, issuer, allowed)
    remember(url, issuer, urls)


def test_without_a_terminal_a_first_login_is_refused() -> None:
    with pytest.raises(UsageError, match=f"There is no terminal .*: add --allow-service {URL}"):
        accept(URL, SSO, None)
    assert not is_known(URL, SSO)


@pytest.mark.parametrize("yes", [True, False])
def test_a_first_login_says_where_the_token_goes_and_asks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, yes: bool
) -> None:
    questions: list[str] = []

    def answer(question: str, **_: object) -> bool:
        questions.append(question)
        return yes

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(typer, "confirm", answer)
    if yes:
        log_in(URL)
        log_in(URL)
    else:
        with pytest.raises(typer.Exit):
            log_in(URL)
    assert questions == [f"Send the token to {URL} from now on? [y/N]"]
    assert (
        f"{URL} will receive the token of your login at {SSO.url} (client clustercert)."
        in capsys.readouterr().err
    )
    assert is_known(URL, SSO) is yes


def test_scripts_name_the_service() -> None:
    with pytest.raises(UsageError, match=f"--allow-service names {OTHER}, but this is a login at {URL}"):
        accept(URL, SSO, OTHER)
    log_in(URL, allowed=URL)
    log_in(URL)


def test_another_service_with_the_same_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    log_in(URL, allowed=URL)
    # Not even asked.
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    with pytest.raises(CommandError, match=f"{FALSE} names the client clustercert .* {URL} accepts too"):
        accept(FALSE, SSO, None)
    log_in(FALSE, allowed=FALSE)
    assert is_known(FALSE, SSO)


@pytest.mark.parametrize("issuer", [with_client(client_id="b"), replace(SSO, url="https://b.example.com")])
def test_another_client_or_issuer_of_a_known_service_is_a_first_login(issuer: LoginIssuer) -> None:
    log_in(URL, allowed=URL)
    with pytest.raises(UsageError, match="--allow-service"):
        accept(URL, issuer, None)
    with pytest.raises(NotLoggedIn, match="with which you have not logged in yet"):
        trust.require_known("default", URL, issuer)
    trust.require_known("default", URL, SSO)


def test_the_other_addresses_of_a_known_service_are_known() -> None:
    log_in(URL, SSO, URL, OTHER, allowed=URL)
    log_in(OTHER)
    assert not is_known(OTHER, with_client(client_id="b"))


def test_an_address_is_known_only_while_the_service_lists_it() -> None:
    log_in(URL, SSO, OTHER, allowed=URL)
    # What a listed address itself lists is not believed.
    log_in(OTHER, SSO, FALSE)
    with pytest.raises(CommandError, match="accepts too"):
        accept(FALSE, SSO, None)
    log_in(URL)
    with pytest.raises(CommandError, match="accepts too"):
        accept(OTHER, SSO, None)


def test_a_service_that_claims_the_address_of_a_known_one_is_new() -> None:
    log_in(URL, allowed=URL)
    # It would list the known address, but is asked about before anything of it is stored.
    with pytest.raises(CommandError, match="accepts too"):
        log_in(FALSE, SSO, URL)
    assert not is_known(FALSE, SSO)


@pytest.mark.parametrize(
    ("resource", "text"),
    [
        (URL, "There is no terminal"),
        (f"{URL.replace('service', 'SERVICE')}/api", "There is no terminal"),
        ("urn:example:clustercert", "There is no terminal"),
        (OTHER, f"{OTHER} accepts too"),
        (f"{OTHER}/api", f"{OTHER} accepts too"),
    ],
)
def test_a_token_for_the_url_of_another_service_is_refused(resource: str, text: str) -> None:
    with pytest.raises(CommandError, match=text):
        accept(URL, with_client(bearer="access", resource=resource), None)


def test_a_forgotten_service_is_a_new_one() -> None:
    log_in(URL, allowed=URL)
    forget(URL)
    forget(OTHER)
    assert not is_known(URL, SSO)


def test_the_file_is_private_and_a_damaged_one_allows_nothing() -> None:
    log_in(URL, allowed=URL)
    path = profile.known_services_path(os.environ)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for content in ("{", "[]", '{"a": 1}', json.dumps({URL: {"clients": [["a"]], "other_urls": []}})):
        path.write_text(content)
        with pytest.raises(CommandError, match="is damaged"):
            accept(URL, SSO, None)
