"""Checks the form of the documentation: lengths of lines, links, named files and tests, drawings, and figures.

`make check` runs it.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import report, scaling  # noqa: E402 - from the checkout
from scripts import doc_pages  # noqa: E402

PAGES = doc_pages.pages(ROOT)
ATTACKS = ROOT / "docs" / "evidence" / "attacks.md"
# The pages for those who change the code name its files. So do the records of decisions.
FOR_DEVELOPERS = ("architecture.md", "issuing.md")
SOURCE = ROOT / "src" / "clustercert"
LONGEST_LINE = 100
SVG = "{http://www.w3.org/2000/svg}"


def outside_of_blocks(page: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines that are in no code block."""
    return doc_pages.outside_of_blocks(page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = [match[1] for _, line in outside_of_blocks(page) if (match := re.match(r"#+ (.*)", line))]
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def long_lines(page: Path) -> Iterator[str]:
    """Lines of prose that are too long. A link can't be broken into lines."""
    for number, line in outside_of_blocks(page):
        if not line.startswith("|") and len(re.sub(r"\]\(.*?\)", "]", line)) > LONGEST_LINE:
            yield f"{number}: longer than {LONGEST_LINE} characters"


def broken_links(page: Path) -> Iterator[str]:
    """Links to files and headings that don't exist."""
    for number, line in outside_of_blocks(page):
        for target in re.findall(r"\]\(([^)\s]+)\)", line):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.exists() or (anchor and anchor not in anchors(file)):
                yield f"{number}: {target} leads nowhere"


# The name alone, with extras or with a version, after a program that looks for names at a package index. Words may be
# broken into lines, in comments too. A file such as ./clustercert-0.1.0-py3-none-any.whl is no name.
_INSTALL = re.compile(
    r"\b(?:(?:pip3?|pipx|uv(?: pip| tool)?)[\s#]+(?:install|upgrade|run|inject|add)|uvx)"
    r"(?:[\s#]+[\w'\"./{}<>=-]+){0,5}?[\s#]+['\"]?(clustercert(?:\[[\w,]*\])?)(?=['\"`\s=<>~,.;:)]|$)"
)


def unowned_installs(root: Path) -> Iterator[str]:
    """Commands that install clustercert by its name. No package index has the project: the name may be another's."""
    others = [root / "pyproject.toml", *root.glob("deploy/**/*"), *root.glob("src/**/*")]
    texts = {".html", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}
    for file in sorted({*doc_pages.pages(root), *others}):
        if file.suffix not in texts or not file.is_file():
            continue
        text = file.read_text(encoding="utf-8")
        for found in _INSTALL.finditer(text):
            number = text.count("\n", 0, found.start()) + 1
            yield f"{file.relative_to(root)}:{number}: installs {found[1]} by name. Name the wheel's file"


def wrongly_listed(root: Path) -> Iterator[str]:
    """Pages that the lists do not name once: a reader would find them twice, or not at all."""
    pages = [page.relative_to(root) for page in doc_pages.pages(root)]
    lists = [page for page in pages if doc_pages.is_list(page)]
    named = Counter(
        page for each in lists for section in doc_pages.sections(root, each) for page in section.pages
    )
    for page in pages:
        if page != doc_pages.HOME and named[page] != 1:
            above = [each for each in lists if page.is_relative_to(each.parent) and each != page]
            where = max(above, key=lambda each: len(each.parts), default=doc_pages.HOME)
            yield f"{page}: is listed {named[page]} times. List it once, in {where}"


def missing_files(page: Path) -> Iterator[str]:
    """Modules and folders of the source, and tests, that the page names and that don't exist."""
    for number, line in outside_of_blocks(page):
        for path in re.findall(r"`([a-z0-9_./]+(?:\.py|/))`", line):
            if not any((folder / path).exists() for folder in (SOURCE, ROOT)):
                yield f"{number}: {path} does not exist"


def missing_tests(page: Path) -> Iterator[str]:
    """Rows of attacks without an existing test."""
    for number, line in outside_of_blocks(page):
        if not line.startswith("| ") or line.startswith(("| attack |", "| ---")):
            continue
        named = re.search(r" \| `([a-z0-9]+/test_\w+\.py)::(test_\w+)` \|$", line)
        if named is None:
            yield f"{number}: names no test"
        elif not re.search(rf"^(async )?def {named[2]}\(", _text(ROOT / "tests" / named[1]), re.MULTILINE):
            yield f"{number}: {named[1]} has no {named[2]}"


@cache
def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.exists() else ""


def faults_of_drawing(drawing: Path) -> Iterator[str]:
    """A drawing needs a text alternative, and each of its colors another one for a dark page."""
    root = ET.parse(drawing).getroot()  # noqa: S314 - our own file
    if (root.tag, root.get("role")) != (f"{SVG}svg", "img") or not root.get("aria-label"):
        yield "needs role and aria-label"
    light, _, dark = (root.findtext(f"{SVG}style") or "").partition("@media (prefers-color-scheme: dark)")
    for colored in re.findall(r"(\.?[a-z]+) \{[^}]*#[0-9a-f]{6}", light):
        if colored not in dark:
            yield f"{colored} has no color for a dark page"


def faults() -> Iterator[str]:
    """All faults, each with its file."""
    for page in PAGES:
        name = page.relative_to(ROOT)
        if page.name != "CHANGELOG.md":
            yield from (f"{name}:{fault}" for fault in long_lines(page))
        yield from (f"{name}:{fault}" for fault in broken_links(page))
        if page.name in FOR_DEVELOPERS or page.parent.name == "adr":
            yield from (f"{name}:{fault}" for fault in missing_files(page))
    yield from wrongly_listed(ROOT)
    yield from unowned_installs(ROOT)
    yield from (f"{ATTACKS.relative_to(ROOT)}:{fault}" for fault in missing_tests(ATTACKS))
    for drawing in sorted(ROOT.glob("docs/*.svg")):
        yield from (f"{drawing.relative_to(ROOT)}: {fault}" for fault in faults_of_drawing(drawing))
    page, measured = report.DOCUMENT, report.load()
    if report.filled(text := page.read_text(encoding="utf-8"), report.performance(measured)) != text:
        yield f"{page.relative_to(ROOT)}: tables differ from the figures that were measured"


def main() -> int:
    """Print all faults."""
    found = [*faults()]
    print("\n".join(found) or f"{len(PAGES)} pages are well-formed")
    return 1 if scaling.main([]) or found else 0


if __name__ == "__main__":
    sys.exit(main())
