"""All pages of the documentation: their form, and where their links lead."""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from clustercert.kubernetes.setup.rbac import DEFAULT_BINDINGS
from clustercert.policy.rule_settings import PolicySettings

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
LONGEST_LINE = 100
LONGEST_CELL = 200
# Phrases that readers stumbled over, and words that only authors of this service know.
ODD = ("is no file", "Say which", "key rest", "Whoever", "the contract")
DRAWINGS = sorted(ROOT.glob("docs/*.svg"))
SVG = "{http://www.w3.org/2000/svg}"


def outside_of_blocks(page: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines that are in no code block."""
    fence = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        found = re.match(r" *(`{3,})", line)
        if found and not fence:
            fence = found[1]
        elif found and found[1] == fence:
            fence = ""
        elif not fence:
            yield number, line


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = [match[1] for _, line in outside_of_blocks(page) if (match := re.match(r"#+ (.*)", line))]
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name)
def test_lines_of_prose_fit_into_an_editor(page: Path) -> None:
    prose = [(number, line) for number, line in outside_of_blocks(page) if not line.startswith("|")]
    # A link can't be broken into lines.
    long = [
        f"{number}: {line}" for number, line in prose if len(re.sub(r"\]\(.*?\)", "]", line)) > LONGEST_LINE
    ]
    assert long == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "audit-events.md"], ids=name)
def test_a_cell_of_a_table_is_a_phrase(page: Path) -> None:
    cells = [
        (number, cell)
        for number, line in outside_of_blocks(page)
        if line.startswith("|")
        for cell in re.split(r"(?<!\\)\|", line)
    ]
    assert [
        (number, cell) for number, cell in cells if len(re.sub(r"\]\(.*?\)", "]", cell)) > LONGEST_CELL
    ] == []


@pytest.mark.parametrize("page", [page for page in PAGES if "adr" not in page.parts], ids=name)
def test_no_page_has_phrases_that_readers_stumbled_over(page: Path) -> None:
    text = " ".join(page.read_text(encoding="utf-8").split())
    assert [phrase for phrase in ODD if phrase in text] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for number, line in outside_of_blocks(page):
        for target in re.findall(r"\]\(([^)\s]+)\)", line):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append(f"{number}: {target}")
    assert broken == []


@pytest.mark.parametrize("drawing", DRAWINGS, ids=name)
def test_a_drawing_has_a_text_alternative_and_colors_for_a_dark_page(drawing: Path) -> None:
    root = ET.parse(drawing).getroot()  # noqa: S314 - our own file
    assert (root.tag, root.get("role")) == (f"{SVG}svg", "img")
    assert root.get("aria-label")
    style = root.findtext(f"{SVG}style") or ""
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    colored = {match[0] for match in re.findall(r"(\.?[a-z]+) \{[^}]*#[0-9a-f]{6}", light)}
    assert {each for each in colored if each not in dark} == set()


def test_the_default_rights_of_roles_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    table = page.split("<!-- roles -->")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `([^`]*)` \| `([^`]*)` \| `([^`]*)` \|$", table, re.MULTILINE)
    expected = [
        (rule.tested_role, group, DEFAULT_BINDINGS[group])
        for rule in PolicySettings(role_groups=True).all_rules
        for group in rule.granted_groups
    ]
    assert rows == expected
