"""The text of the console's templates: no way around escaping, and nothing that the CSP would block."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clustercert.http.console.rendering import FOLDER, STATIC, relative

TEMPLATES = sorted((FOLDER / "templates").rglob("*.html"))
EXPRESSION = re.compile(r"\{[%{#].*?[%}#]\}", re.DOTALL)
UNESCAPED = "an unescaped value"
FORBIDDEN = {
    UNESCAPED: r"\|\s*safe\b|Markup|autoescape|\bforceescape\b",
    "an inline style": r"<style\b|\sstyle\s*=",
    "an event handler": r"\son\w+\s*=",
    "an address with code": r"javascript:|data:text",
    "another site": r"(?:src|action)\s*=\s*[\"']?(?:https?:)?//",
}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
@pytest.mark.parametrize("fault", FORBIDDEN)
def test_a_template_has_no(template: Path, fault: str) -> None:
    text = template.read_text(encoding="utf-8")
    if fault != UNESCAPED:
        text = EXPRESSION.sub("", text)
    assert re.findall(FORBIDDEN[fault], text, re.IGNORECASE) == []


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_each_script_is_a_file_with_a_nonce(template: Path) -> None:
    for attributes, content in re.findall(
        r"<script\b(.*?)>(.*?)</script>", template.read_text(encoding="utf-8"), re.DOTALL
    ):
        assert 'nonce="{{ nonce }}"' in attributes
        assert "src=" in attributes
        assert content.strip() == ""


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_a_live_part_has_nothing_that_an_update_would_take_away(template: Path) -> None:
    text = template.read_text(encoding="utf-8")
    for part in re.findall(r"^\{% call m\.live\(.*^\{% endcall %\}$", text, re.MULTILINE | re.DOTALL):
        assert re.findall(r"<(?:form|input|select|textarea|button|details)\b", part) == []


def test_the_style_sheet_loads_nothing() -> None:
    assert re.findall(r"@import|url\(|expression\(", (STATIC / "console.css").read_text()) == []


def test_the_style_sheet_has_the_classes_of_the_templates_and_no_others() -> None:
    sheet = re.sub(r"/\*.*?\*/", "", (STATIC / "console.css").read_text(encoding="utf-8"), flags=re.DOTALL)
    styled = {
        name
        for selector in re.findall(r"[^{}]+(?=\{)", sheet)
        for name in re.findall(r"\.([a-z]+)", selector)
    }
    text = "".join(template.read_text(encoding="utf-8") for template in TEMPLATES)
    names = "".join(page.read_text(encoding="utf-8") for page in FOLDER.rglob("*.py"))
    used = {name for each in re.findall(r'class="(.*?)"', EXPRESSION.sub(" ", text)) for name in each.split()}
    assert used - styled == set()
    assert {name for name in styled if not re.search(rf"\b{name}\b", text + names)} == set()


@pytest.mark.parametrize(
    ("distance", "text"),
    [
        (timedelta(hours=7, minutes=58), "in 8 h"),
        (timedelta(hours=-7, minutes=-58), "8 h ago"),
        (timedelta(days=3649, hours=23), "in 10 y"),
        (timedelta(minutes=119, seconds=59), "in 119 min"),
        (timedelta(seconds=59), "in 59 s"),
        (timedelta(0), "now"),
    ],
)
def test_a_time_is_shown_as_the_nearest_number_of_its_unit(distance: timedelta, text: str) -> None:
    now = datetime(2026, 11, 30, tzinfo=UTC)
    assert relative(now + distance, now) == text
