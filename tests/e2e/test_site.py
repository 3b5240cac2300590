"""The site of the documentation, as files."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from support import doc_site
from support.page_steps import ROOT

pytestmark = [pytest.mark.full, pytest.mark.slow]

# What a browser loads without a click. The other links are for the reader.
LOADED = {"src", "srcset", "data", "poster"}
STYLE = re.compile(r"url\(\s*[\"']?([^\"')]+)|@import\s+[\"']?([^\"';]+)")


@dataclass
class Page(HTMLParser):
    """The addresses in a page.

    Attributes:
        loaded: what the browser loads.
        linked: where links lead.
        anchors: ids, to which links may lead.
        styles: styles in the page.
    """

    text: str
    loaded: list[str] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    styles: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._in_style = False
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self._in_style = tag == "style"
        self.loaded += [value for name, value in values.items() if name in LOADED]
        if "href" in values:
            (self.linked if tag == "a" else self.loaded).append(values["href"])
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.styles += [values["style"]] if "style" in values else []

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.styles.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return doc_site.build(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def pages(built: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in built.rglob("*.html")}


def _styled(style: str) -> list[str]:
    return [found[1] or found[2] for found in STYLE.finditer(style)]


def test_every_file_that_a_page_loads_is_in_the_site(built: Path, pages: dict[Path, Page]) -> None:
    loaded = [(path, address) for path, page in pages.items() for address in page.loaded]
    loaded += [(path, a) for path, page in pages.items() for style in page.styles for a in _styled(style)]
    loaded += [(path, a) for path in built.rglob("*.css") for a in _styled(path.read_text(encoding="utf-8"))]
    loaded += [
        (path, address)
        for path in built.rglob("*.svg")
        for address in re.findall(r"(?:href|src)=\"([^\"#]+)", path.read_text(encoding="utf-8"))
    ]
    assert len(loaded) > len(pages)
    assert [(path, address) for path, address in loaded if not _is_here(built, path, address)] == []


def _is_here(built: Path, path: Path, address: str) -> bool:
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return parts.scheme == "data"
    target = (path.parent / unquote(parts.path)).resolve()
    return target.is_relative_to(built) and target.exists()


def test_no_script_has_the_address_of_another_host(built: Path) -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in built.rglob("*.js")}
    code = {name: re.sub(r"/\*(?:.|\n)*?\*/|//[ #].*", "", text) for name, text in texts.items()}
    assert {name for name, text in code.items() if re.search(r"https?://(?!www\.w3\.org)", text)} == set()


def test_every_link_leads_to_a_page_and_a_heading(built: Path, pages: dict[Path, Page]) -> None:
    assert [*_broken(built, pages)] == []


def _broken(built: Path, pages: dict[Path, Page]) -> Iterator[str]:
    for path, page in pages.items():
        for address in page.linked:
            parts = urlsplit(address)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.exists() or (anchor and target in pages and anchor not in pages[target].anchors):
                yield f"{path.relative_to(built)}: {address}"


def test_every_page_of_the_documentation_is_reached_from_the_home_page(
    built: Path, pages: dict[Path, Page]
) -> None:
    navigation = {
        (built / unquote(urlsplit(address).path)).resolve()
        for address in pages[built / "index.html"].linked
        if not urlsplit(address).scheme and urlsplit(address).path
    }
    assert {path.relative_to(built) for path in pages if path not in navigation} <= {
        Path("index.html"),
        Path("search.html"),
    }


def test_two_builds_have_the_same_bytes(built: Path, tmp_path: Path) -> None:
    assert _contents(doc_site.build(tmp_path)) == _contents(built)


def _contents(built: Path) -> dict[Path, bytes]:
    return {path.relative_to(built): path.read_bytes() for path in built.rglob("*") if path.is_file()}


def test_each_alert_leads_to_a_page_of_the_site_and_its_section(built: Path, pages: dict[Path, Page]) -> None:
    rules = (ROOT / "deploy" / "prometheus-alerts.yaml").read_text(encoding="utf-8")
    links = re.findall(r"runbook_url: https://docs\.clustercert\.example/(\S+)", rules)
    assert links
    for link in links:
        page, _, anchor = link.partition("#")
        assert not anchor or anchor in pages[built / page].anchors, link
