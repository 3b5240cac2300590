"""The recipes in docs/identity.md and docs/keystone.md, as settings files."""

import re
from collections.abc import Mapping
from pathlib import Path

PAGES = [Path(__file__).parents[2] / "docs" / name for name in ("identity.md", "keystone.md")]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
# In the recipes: the project in which an issuer's users have roles, and an id for this project.
NAMED_PROJECT, PROJECT = "Default/eu-de", "1" * 32


def recipes() -> dict[str, str]:
    """The text of each recipe in TOML, by name, in the order of the pages."""
    return dict(re.findall(r"<!-- identity: ([\w-]+) -->\n```toml\n(.*?)```", TEXT, re.DOTALL))


def recipe(name: str, replaced: Mapping[str, str] | None = None) -> str:
    """A recipe, with texts replaced that an operator replaces. Each must be there."""
    text = recipes()[name]
    for old, new in (replaced or {}).items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def recipe_lines(name: str) -> str:
    """Lines that take the place of others in a recipe."""
    [found] = re.findall(rf"<!-- identity lines: {name} -->\n```toml\n(.*?)```", TEXT, re.DOTALL)
    return str(found)


def recipe_file(folder: Path, name: str, replaced: Mapping[str, str]) -> Path:
    """Write a recipe to a settings file."""
    path = folder / f"{name}.toml"
    path.write_text(recipe(name, replaced), encoding="utf-8")
    return path
