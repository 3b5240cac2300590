"""The console's page about the rotation of a client CA. The API servers are the tests' doubles."""

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest

from clustercert.http.console.visits import login_address
from support.ca_rotation import NewRotation, RotatingService, Rotation, new_rotations, rotating_service
from support.console import Browser, make_logins_old


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RotatingService]:
    with rotating_service(tmp_path_factory.mktemp("rotation"), console={"enabled": True}) as running:
        yield running


@pytest.fixture
def new(site: RotatingService, tmp_path: Path) -> Iterator[NewRotation]:
    with new_rotations(site, tmp_path) as start:
        yield start


def browser_of(rotation: Rotation, who: str = "operator") -> Browser:
    return Browser.in_session(rotation.service, rotation.world.people[who])


def page_of(rotation: Rotation) -> str:
    return f"/console/projects/{rotation.world.project.id}/clusters/{rotation.cluster_id}/rotation"


def shown(rotation: Rotation, tail: str = "", who: str = "operator") -> str:
    """The text of a page, in one line."""
    answer = browser_of(rotation, who).get(page_of(rotation) + tail)
    assert answer.status_code == 200, answer.text
    return unescape(" ".join(re.sub(r"<[^>]+>", " ", answer.text).split()))


def test_an_operator_replaces_a_ca_and_completes_it_early_with_the_exact_count(new: NewRotation) -> None:
    rotation = new()
    page, operator = page_of(rotation), browser_of(rotation)
    rotation.issue()
    assert "was never replaced" in shown(rotation)
    assert "1 valid certificate of the present CA" in shown(rotation, "/start")
    assert rotation.send("GET", "/client-ca-rotation").status_code == 404

    started = operator.post(f"{page}/start", None, deny_old="on")
    assert (started.status_code, started.headers["location"]) == (303, page)
    found = rotation.get()
    assert (found["state"], found["deny_old"], found["auto_complete"]) == ("planned", True, False)
    planned = shown(rotation)
    assert "clustercert kubernetes setup" in planned
    assert "0 of 1 API servers accept the new CA" in planned
    assert "member 1 in 23 h never" in planned or "member 1 in 24 h never" in planned
    assert "it is planned" in shown(rotation, "/start")

    rotation.trust()
    rotation.reach("draining")
    assert "Complete… Abort…" in shown(rotation)
    before = shown(rotation, "/complete")
    assert "1 valid certificate of the old CA will be refused." in before
    assert "Who loses access: member (1)" in before
    for typed in ("", "2", "one"):
        refused = operator.post(f"{page}/complete", None, holders=typed)
        assert refused.status_code in (400, 409), refused.text
        assert 'role="alert"' in refused.text
        assert rotation.get()["completion_asked_at"] is None
    assert "Valid certificates of the old CA: 1, not 2" in unescape(
        operator.post(f"{page}/complete", None, holders="2").text
    )
    assert operator.post(f"{page}/complete", None, holders="1", deny_old="on").status_code == 303
    completing = rotation.get()
    assert (completing["forced"], completing["deny_old"]) == (True, True)
    rotation.trust()
    rotation.reach("complete")
    assert "Nothing. The rotation is complete." in shown(rotation)
    assert operator.get(f"{page}/start").status_code == 200


def test_an_operator_aborts_a_rotation(new: NewRotation) -> None:
    rotation = new()
    rotation.post()
    assert "Nobody has a certificate of the new CA." in shown(rotation, "/abort")
    assert rotation.get()["state"] == "planned"
    assert browser_of(rotation).post(f"{page_of(rotation)}/abort").status_code == 303
    assert rotation.get()["state"] == "aborted"
    assert "the old CA signs as before" in shown(rotation)


def test_an_abort_after_the_new_ca_has_signed_goes_back(new: NewRotation) -> None:
    rotation = new()
    rotation.post()
    rotation.trust()
    rotation.reach("draining")
    assert "the rotation goes back in the same steps" in shown(rotation, "/abort")
    assert browser_of(rotation).post(f"{page_of(rotation)}/abort").status_code == 303
    assert rotation.get()["reverses"]
    page = shown(rotation)
    assert "This rotation goes back to the previous CA" in page
    assert "Abort…" not in page


def test_a_rotation_that_takes_access_from_nobody_completes_without_a_count(new: NewRotation) -> None:
    rotation = new()
    page, operator = page_of(rotation), browser_of(rotation)
    unknown = operator.post(f"{page}/start", None, signer="missing", auto_complete="on")
    assert unknown.status_code == 400
    assert "signer: missing is not installed." in unknown.text
    assert 'value="missing"' in unknown.text
    assert 'name="auto_complete" checked' in unknown.text
    assert operator.post(f"{page}/start").status_code == 303
    rotation.trust()
    rotation.reach("draining")
    assert "now completing is safe" in shown(rotation)
    confirmation = operator.get(f"{page}/complete").text
    assert "so nobody loses access" in confirmation
    assert 'name="holders"' not in confirmation
    assert operator.post(f"{page}/complete").status_code == 303
    completing = rotation.get()
    assert completing["completion_asked_at"] is not None
    assert not completing["forced"]


def test_an_admin_sees_the_rotation_and_changes_nothing(new: NewRotation) -> None:
    rotation = new()
    rotation.post()
    page, browser = page_of(rotation), browser_of(rotation, "admin")
    assert "Abort…" not in shown(rotation, who="admin")
    for action in ("start", "complete", "abort"):
        assert browser.post(f"{page}/{action}").status_code == 403
    assert rotation.get()["state"] == "planned"


def test_a_change_needs_a_login_of_the_last_minutes(new: NewRotation) -> None:
    rotation = new()
    operator, page = browser_of(rotation), page_of(rotation)
    make_logins_old(rotation.world, "operator")
    for action in ("start", "complete", "abort"):
        answer = operator.post(f"{page}/{action}")
        assert answer.headers["location"] == login_address(f"{page}/{action}", again=True)
        # The login is asked for before the form is shown.
        answer = operator.get(f"{page}/{action}")
        assert answer.headers["location"] == login_address(f"{page}/{action}", again=True)
    assert rotation.send("GET", "/client-ca-rotation").status_code == 404
