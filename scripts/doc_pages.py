"""The pages of the documentation: where they are, their links, and the order in which their lists name them.

`docs/README.md` is the home page. Its sections are the doors for different readers.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HOME = Path("docs", "README.md")
_HEADING = re.compile(r"(#{2,}) (.*)")
_ENTRY = re.compile(r"- \[[^]]+\]\(([^)#\s]+\.md)\)|\|.*?\]\(([^)#\s]+\.md)\)")


@dataclass(frozen=True)
class Section:
    """The pages that a section of a list page names.

    Attributes:
        title: the headings above the list, such as `I run the service: set it up`; empty above the first heading.
        pages: relative to the checkout, in the order of the list.
    """

    title: str
    pages: tuple[Path, ...]


def pages(root: Path) -> list[Path]:
    """All pages, absolute and sorted."""
    return sorted([*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("deploy/**/*.md")])


def is_list(page: Path) -> bool:
    """Whether the page, relative to the checkout, lists the other pages of its folder."""
    return page.name == "README.md" and page.parts[0] == "docs"


def outside_of_blocks(text: str) -> Iterator[tuple[int, str]]:
    """The numbered lines of a page that are in no code block."""
    fence = ""
    for number, line in enumerate(text.splitlines(), 1):
        found = re.match(r" *(`{3,})", line)
        if found and not fence:
            fence = found[1]
        elif found and found[1] == fence:
            fence = ""
        elif not fence:
            yield number, line


def sections(root: Path, page: Path) -> list[Section]:
    """The sections of a list page that name pages.

    A list item or a row of a table names a page if it begins with a link to the page. A link to a heading only
    refers to it.
    """
    found: dict[str, list[Path]] = {}
    headings: dict[int, str] = {}
    for _, line in outside_of_blocks((root / page).read_text(encoding="utf-8")):
        if heading := _HEADING.match(line):
            level = len(heading[1])
            headings = {each: text for each, text in headings.items() if each < level} | {level: heading[2]}
        elif entry := _ENTRY.match(line):
            target = (root / page.parent / (entry[1] or entry[2])).resolve().relative_to(root)
            found.setdefault(_title(list(headings.values())), []).append(target)
    return [Section(title, tuple(named)) for title, named in found.items()]


def _title(headings: list[str]) -> str:
    first, *rest = headings or [""]
    return ": ".join([first, *(text[0].lower() + text[1:] for text in rest)])
