"""The text of the console's templates: no way around escaping, and nothing that the CSP would block."""

import re
from pathlib import Path

import pytest

from clustercert.http.console.rendering import FOLDER, STATIC

TEMPLATES = sorted((FOLDER / "templates").rglob("*.html"))
EXPRESSION = re.compile(r"\{[%{#].*?[%}#]\}", re.DOTALL)
UNESCAPED = "an unescaped value"
FORBIDDEN = {
    UNESCAPED: r"\|\s*safe\b|Markup|autoescape|\bforceescape\b",
    "an inline style": r"<style\b|\sstyle\s*=",
    "an event handler": r"\son\w+\s*=",
    "htmx code in an attribute": r"\bhx-on|\bhx-vals|\bhx-headers|\bjs:",
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


def test_the_style_sheet_loads_nothing() -> None:
    assert re.findall(r"@import|url\(|expression\(", (STATIC / "console.css").read_text()) == []
