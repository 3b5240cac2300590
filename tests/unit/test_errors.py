import importlib
import pkgutil
import re

import pytest

import clustercert
import clustercert.model.errors
from clustercert.model.errors import (
    ClustercertError,
    CustodyError,
    Forbidden,
    NotFound,
    Unauthenticated,
    Unavailable,
    UnsealError,
)

# ARCHITECTURE section 6, the table of codes.
PAIRS = {
    (400, "CCE.01400001"),
    (400, "CCE.01400006"),
    (401, "CCE.01401001"),
    (403, "CCE.01403001"),
    (404, "CCE.01404001"),
    (404, "APIGW.0101"),
    (405, "APIGW.0201"),
    (409, "CCE.01409001"),
    (413, "APIGW.0201"),
    (429, "CCE.02429001"),
    (500, "CCE.01500001"),
    (502, "CCE.01502001"),
    (503, "CCE.01503001"),
}
# Beyond that table: a request that does not come, one whose body is compressed and one whose header is too large are no
# statuses of it, and the gateway's code for a bad request fits.
# 412 is our own: CCE has no preconditions.
BEYOND = {(408, "APIGW.0201"), (412, "CCE.01412001"), (415, "APIGW.0201"), (431, "APIGW.0201")}


def tree(root: type[ClustercertError] = ClustercertError) -> list[type[ClustercertError]]:
    """Every class below the root, wherever in the package it is defined."""
    for module in pkgutil.walk_packages(clustercert.__path__, "clustercert."):
        if not module.name.endswith("__main__") and ".migrations" not in module.name:
            importlib.import_module(module.name)
    found = [root]
    for kind in found:
        found += [child for child in kind.__subclasses__() if child not in found]
    return [kind for kind in found if kind.__module__.startswith("clustercert")]


def test_every_error_has_a_status_and_code_of_the_table() -> None:
    wrong = {kind.__name__: (kind.status, kind.code) for kind in tree()}
    assert {name: pair for name, pair in wrong.items() if pair not in PAIRS | BEYOND} == {}


def test_every_pair_of_the_table_has_an_error() -> None:
    assert {(kind.status, kind.code) for kind in tree()} >= PAIRS


def test_the_tree_that_the_module_draws_is_the_tree() -> None:
    drawn = re.findall(r"(?:\*|\+) (\w+) +(\d+) +(\S+)", clustercert.model.errors.__doc__ or "")
    real = [kind for kind in tree() if kind.__module__ == "clustercert.model.errors"]
    assert sorted(drawn) == sorted((kind.__name__, str(kind.status), kind.code) for kind in real)


def test_the_base_class_has_a_message_without_details() -> None:
    assert ClustercertError().message == "Internal error."


@pytest.mark.parametrize("reason", ["no such token", "wrong password for alice", "signature differs"])
def test_failed_authentications_have_the_same_message(reason: str) -> None:
    failure = Unauthenticated(reason)
    assert failure.message == Unauthenticated("something else").message
    assert reason not in str(failure)
    assert failure.reason == reason


def test_an_unreadable_secret_has_a_message_without_details() -> None:
    assert "key 7" not in UnsealError("data key 7 is damaged").message


def test_messages_are_those_that_were_given() -> None:
    assert Forbidden("Ask for less.").message == "Ask for less."
    assert CustodyError("No key.").message == "No key."
    assert NotFound().message == NotFound().message


def test_unavailable_says_when_to_try_again() -> None:
    assert Unavailable("Not now.").retry_after == 1
    assert Unavailable("Not now.", retry_after=30).retry_after == 30
