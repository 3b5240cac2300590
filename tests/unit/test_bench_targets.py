"""What was promised is judged by the figures that it was promised of."""

from typing import Any

from bench import report, targets

OURS = "clustercert, PostgreSQL, token"


def _verdict(measured: dict[str, Any], what: str) -> tuple[str, str]:
    (target,) = (target for target in targets.judge(measured) if what in target.what)
    return target.measured, target.verdict


def _compared(**rates: float) -> dict[str, Any]:
    names = {"ours": OURS, "order": targets.ORDER, "whole": targets.WHOLE_ORDER}
    rows = [
        {"subject": names[key], "connections": 64, "rate": rate, "p99_ms": 1.0} for key, rate in rates.items()
    ]
    return {"compare": {"rows": rows}}


def test_a_certificate_in_hand_is_compared_with_a_certificate_in_hand() -> None:
    measured = _compared(ours=2000, order=250, whole=90)
    assert _verdict(measured, "the certificate in the client's hands") == ("22.22 x", "yes")
    # Seen beside it, but promised of nobody.
    assert _verdict(measured, "django-ca's order alone") == ("8.00 x", "not promised")
    slower = _compared(ours=1700, order=250, whole=90)
    assert _verdict(slower, "the certificate in the client's hands") == ("18.89 x", "**no**")
    unmeasured = _compared(ours=2000, order=250)
    assert _verdict(unmeasured, "the certificate in the client's hands") == ("?", "not measured")


def _size(certificates: int, rate: float, steady: float | None) -> dict[str, Any]:
    figures = dict.fromkeys([*report._WRITTEN.values(), *report._READ.values()], 5.0)
    named = {"database": "PostgreSQL", "certificates": certificates, "clusters": 10}
    return {**figures, **named, "rate": rate, "steady_rate": steady}


def test_growth_is_judged_by_the_steady_rate() -> None:
    sizes = [_size(1000, 2000, 2000), _size(10_000_000, 1000, 1700)]
    assert _verdict({"growth": sizes}, "PostgreSQL, steady rate") == ("0.85 x", "yes")
    # What was measured before there was a steady rate says nothing about it.
    sizes = [_size(1000, 2000, None), _size(10_000_000, 1900, None)]
    assert _verdict({"growth": sizes}, "PostgreSQL, steady rate") == ("?", "not measured")


def test_growth_stands_in_two_tables_and_both_rates_in_the_first() -> None:
    written, read = report.performance({"growth": [_size(1000, 2000.0, None)]})["growth"].split("\n\n")
    assert [line.count("|") for line in written.splitlines()] == [14] * 3
    assert [line.count("|") for line in read.splitlines()] == [11] * 3
    heads, cells = (line.strip("| ").split(" | ") for line in written.splitlines()[::2])
    row = dict(zip(heads, cells, strict=True))
    assert (row["issued a second, at first"], row["issued a second, steady"]) == ("2,000", "?")


def test_reviews_are_judged_by_the_largest_store() -> None:
    sizes = [{"database": "SQLite", "known": {"p99_ms": p99}} for p99 in (7.0, 4.5)]
    assert _verdict({"webhook": sizes}, "SQLite, 2,000 reviews") == ("4.5 ms", "yes")
    assert _verdict({"webhook": sizes}, "PostgreSQL, 2,000 reviews") == ("?", "not measured")
