"""Every console block with output is run by a test, or is marked as an illustration."""

import re

import pytest

from support.page_steps import ROOT, Block, Step, blocks, compare, following
from support.page_tests import RUN_BY, TESTS

PAGES = [
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md"))
]
SHOWN: list[Block] = [block for page in PAGES for block in blocks(page) if block.has_output]


def test_every_block_with_output_is_run_or_is_an_illustration() -> None:
    assert [
        f"{block.page}, {block.heading}: {block.steps[0].command}"
        for block in SHOWN
        if block.illustration is None and block.heading not in RUN_BY.get(block.page, {})
    ] == []


def test_every_named_heading_has_a_block_with_output() -> None:
    headings = {(block.page, block.heading) for block in SHOWN if block.illustration is None}
    assert {(page, heading) for page, tests in RUN_BY.items() for heading in tests} == headings


@pytest.mark.parametrize("test", sorted({test for tests in RUN_BY.values() for test in tests.values()}))
def test_every_named_test_exists(test: str) -> None:
    file, name = test.split("::")
    assert re.search(rf"^(?:async )?def {name.partition('[')[0]}\(", (TESTS / file).read_text(), re.MULTILINE)


def test_an_illustration_is_a_mark_directly_above_a_console_block() -> None:
    for page in PAGES:
        marks = re.findall(r"^ *<!-- illustration", (ROOT / page).read_text(), re.MULTILINE)
        assert len(marks) == sum(block.illustration is not None for block in blocks(page)), page


def test_a_named_test_that_does_not_run_a_step_fails() -> None:
    run, left_out = Step("true", ("done",)), Step("clustercert status", ("…",))
    with following([run]):
        compare(run, "done")
    with pytest.raises(AssertionError, match="clustercert status"), following([run, left_out]):
        compare(run, "done")


@pytest.mark.parametrize(
    ("shown", "printed", "fits"),
    [
        ("Revoked 2 certificates.", "Revoked 2 certificates.", True),
        ("Revoked 2 certificates.", "Revoked 3 certificates.", False),
        ("id   553531a85d868311", "id   0000000000000000", True),
        ("id   553531a85d868311", "id   none", False),
        ("until 2026-11-27T22:45:00Z", "until 2027-01-01T00:00:00Z", True),
        ("one line, which is long", "one line,\nwhich is long", True),
        ("first\n…\nlast", "first\nsecond\nthird\nlast", True),
        ("first\n…\nlast", "first\nsecond\nthird", False),
        ("(request …)", "(request 17)", True),
    ],
)
def test_output_is_compared_except_for_what_differs_in_each_run(shown: str, printed: str, fits: bool) -> None:
    step = Step("true", tuple(shown.splitlines()))
    if fits:
        assert compare(step, printed) == printed
    else:
        with pytest.raises(AssertionError):
            compare(step, printed)
