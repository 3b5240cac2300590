"""Names and texts that people chose stay text in all pages of the console, whatever they contain."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clustercert.http.console import rendering
from support import console_site
from support.console_crawl import crawl, session_of
from support.console_site import MARKS
from support.quick_work import quick_passwords

# The frame of all pages, what is shown without a login or after a failure, and a part of other pages.
WITHOUT_NAMES = {"base.html", "login.html", "error.html", "sentence.html"}
# So many addresses of each page are opened: one cluster has many certificates, and one is being rotated.
PER_ROUTE = settings().max_examples // 5
PLAIN = "x"
OVERRIDE = "\u202e"
MARKED = re.compile("|".join(MARKS.values()))
# Elements that isolate the direction of their text (`code` and `pre` by the style sheet), and those that can contain no
# other elements.
ISOLATING = {"bdi", "code", "pre", "title", "desc", "option", "textarea"}
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
TEXTS = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
        st.sampled_from("<>\"'&={}%/ \n\u202e\u2066\u200f\u0627"),
    ),
    min_size=1,
    max_size=64,
)


@dataclass
class Structure(HTMLParser):
    """What of a page must not depend on names.

    Attributes:
        elements: each element with the names of its attributes.
        code: values of attributes that lead somewhere or run code, up to the first name.
        mixed: text with a right-to-left override outside an element that isolates it.
    """

    markup: str

    def __post_init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.code: list[str] = []
        self.mixed: list[str] = []
        self._open: list[tuple[str, bool]] = []
        self.feed(self.markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, tuple(sorted(attributes))))
        if tag not in VOID:
            self._open.append((tag, tag in ISOLATING or attributes.get("dir") == "auto"))
        for name in ("href", "action", "src", "formaction"):
            if name in attributes:
                self.code.append(re.split("[?#]", attributes[name] or "")[0].split("/")[0])

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_comment(self, data: str) -> None:
        self.elements.append(("comment", ()))

    def handle_data(self, data: str) -> None:
        if OVERRIDE in data and not any(isolates for _, isolates in self._open):
            self.mixed.append(f"{self._open[-1][0]}: {data.strip()[:80]}")


@dataclass(frozen=True)
class Rendering:
    """What a page was rendered with.

    Attributes:
        plain: the page with names of one letter.
    """

    template: str
    values: Mapping[str, Any] = field(repr=False)
    plain: Structure = field(repr=False)


class Renderings(list[Rendering]):
    """Several renderings. Hypothesis shows them in its report."""

    def __repr__(self) -> str:
        return ", ".join(sorted({each.template for each in self}))


@pytest.fixture(scope="module")
def renderings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Renderings]:
    """All pages that an operator, an admin and a member find, with the values of their templates."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    rendered = rendering.rendered

    def recorded(template: str, values: Mapping[str, Any]) -> str:
        found.append((template, values))
        return rendered(template, values)

    with quick_passwords(), console_site.running_here(tmp_path_factory.mktemp("site")) as site:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rendering, "rendered", recorded)
            # The links of a member lead to another page about the cluster.
            page = f"/console/projects/{site.project_of('staging')}/clusters/{site.clusters['staging']}"
            for who in ("olga", "alice", "mo"):
                crawl(site, session_of(site, who), page, per_route=PER_ROUTE)
        yield _samples(found)


def _samples(found: Iterable[tuple[str, Mapping[str, Any]]]) -> Renderings:
    """A few renderings of each template: with names, and with as different structures as there are."""
    samples: dict[tuple[str, object], Rendering] = {}
    for template, values in found:
        plain = _structure(template, values, PLAIN)
        kinds = len({tag for tag, _ in plain.elements})
        samples.setdefault((template, kinds), Rendering(template, values, plain))
    return Renderings(samples.values())


def _structure(template: str, values: Mapping[str, Any], text: str) -> Structure:
    return Structure(rendering.rendered(template, _with_names(values, text)))


def _with_names(value: Any, text: str) -> Any:
    """The value, with a text for the mark of each name in it."""
    if isinstance(value, str):
        return MARKED.sub(lambda _: text, value)
    if isinstance(value, Mapping):
        return {key: _with_names(each, text) for key, each in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_with_names(each, text) for each in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [each.name for each in dataclasses.fields(value) if each.init]
        return dataclasses.replace(
            value, **{each: _with_names(getattr(value, each), text) for each in fields}
        )
    return value


def test_each_template_is_rendered_with_names(renderings: Renderings) -> None:
    pages = {file.name for file in (rendering.FOLDER / "templates").iterdir()} - WITHOUT_NAMES
    marked = {
        each.template for each in renderings if MARKED.search(rendering.rendered(each.template, each.values))
    }
    assert {name for name in pages - marked if "macros" not in name} == set()


@settings(max_examples=settings().max_examples // 5)
@given(text=TEXTS)
@example(text="<script>alert(1)</script>")
@example(text='"><img src=x onerror=alert(1)>')
@example(text="' autofocus onfocus=alert(1) x='")
@example(text="</title></textarea></bdi><svg/onload=alert(1)>")
@example(text="{{ 7 * 7 }}{% raw %}")
@example(text=f"{OVERRIDE}nimda")
@example(text="x" * 64)
def test_names_add_no_element_attribute_or_script(renderings: Renderings, text: str) -> None:
    for each in renderings:
        found = _structure(each.template, each.values, text)
        assert found.elements == each.plain.elements, each.template
        assert [len(address) > 0 for address in found.code] == [
            len(address) > 0 for address in each.plain.code
        ], each.template


def test_names_from_right_to_left_change_no_text_around_them(renderings: Renderings) -> None:
    mixed = {
        each.template: _structure(each.template, each.values, f"{OVERRIDE}nimda").mixed for each in renderings
    }
    assert {template: texts for template, texts in mixed.items() if texts} == {}
