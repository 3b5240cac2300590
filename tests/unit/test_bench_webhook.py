"""What the webhook's measurement needs, and how its figures stand in a table."""

from typing import TYPE_CHECKING, Any, cast

import pytest

from bench import report, webhook

if TYPE_CHECKING:
    from bench.webhook import ApiServer
    from bench.world import World


def test_a_store_with_too_few_credentials_to_show_is_refused() -> None:
    nobody = cast("ApiServer", None)
    with pytest.raises(ValueError, match="1000 certificates are too few for 10 seconds"):
        webhook._measure(cast("World", None), nobody, nobody, (1000, 1), 10, "SQLite")


def test_the_figures_stand_in_a_table() -> None:
    run = {"rate": 2001.0, "p50_ms": 0.7, "p99_ms": 3.1, "max_ms": 9.0, "cpu_us": 350.0, "errors": 0}
    size: dict[str, Any] = {"database": "SQLite", "certificates": 40_000, "revocations": 1000}
    size |= {"nothing": run, "known": run | {"p99_ms": 4.25}, "first": run, "revoked_ms": 250.0}
    lines = report.performance({"webhook": [size]})["webhook"].splitlines()
    assert [line.count("|") for line in lines] == [12] * 5
    assert [line.split(" | ")[3] for line in lines[2:]] == [
        "nothing, `/healthz`",
        "reviews of known credentials",
        "reviews of new ones each",
    ]
    assert [line.split(" | ")[6] for line in lines[2:]] == ["3.10", "4.25", "3.10"]
