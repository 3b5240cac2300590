"""The pages that a browser shows at the end of a login."""

from html import escape
from typing import NamedTuple


class Page(NamedTuple):
    """A page with one or two sentences. `title` and `text` are plain text, not HTML."""

    status: int
    title: str
    text: str


def page_html(page: Page) -> str:
    """Return the page as HTML without scripts and styles."""
    title = escape(page.title)
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title></head>\n'
        f"<body>\n<h1>{title}</h1>\n<p>{escape(page.text)}</p>\n</body>\n</html>\n"
    )
