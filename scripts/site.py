"""Builds the site of the documentation into build/site: HTML that needs no server and loads nothing from elsewhere.

`make site` runs it. Its pages are the pages that a forge shows. Its navigation comes from their lists.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

from clustercert import __version__
from scripts import doc_pages
from scripts.build_error import BuildError
from scripts.doc_pages import HOME

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "site"
PYTHON = ROOT / ".venvs" / "site" / "bin" / "python"
SPHINX = ROOT / "scripts" / "sphinx"
ICON = ROOT / "src" / "clustercert" / "http" / "console" / "static" / "icon.svg"
# The text may begin in the line before.
_LINK = re.compile(r"(?:\[(?P<text>[^]]*))?\]\((?P<target>[^)\s]+)\)")


def place(file: Path) -> Path:
    """The place of a file, relative to the checkout, in the site's source. Pages of `docs` are at its top."""
    moved = file.relative_to("docs") if file.parts[0] == "docs" else file
    return moved.with_name("index.md") if doc_pages.is_list(file) else moved


def rewrite(root: Path, page: Path) -> tuple[str, set[Path]]:
    """Rewrite the links of a page for its place in the site.

    Returns the text, and the linked files that are no pages, relative to the checkout. A link to a folder becomes text.
    """
    files: set[Path] = set()
    text = (root / page).read_text(encoding="utf-8")
    lines = text.splitlines()
    for number, line in doc_pages.outside_of_blocks(text):
        lines[number - 1] = _LINK.sub(lambda found: _rewrite_link(root, page, found, files), line)
    return "\n".join(lines) + "\n", files


def _rewrite_link(root: Path, page: Path, link: re.Match[str], files: set[Path]) -> str:
    path, _, anchor = link["target"].partition("#")
    if re.match("[a-z]+:", path) or not path:
        return link[0]
    target = (root / page.parent / path).resolve().relative_to(root)
    if (root / target).is_dir():
        return link["text"] or ""
    if target.suffix != ".md":
        files.add(target)
    moved = os.path.relpath(place(target), place(page).parent)
    return link[0].replace(link["target"], f"{moved}#{anchor}" if anchor else moved)


def navigation(root: Path, page: Path) -> str:
    """The lists of a page as directives of Sphinx, which show nothing on the page itself."""
    directives = []
    for section in doc_pages.sections(root, page):
        caption = [f":caption: {section.title}"] if page == HOME and section.title else []
        pages = [str(Path("/") / place(each).with_suffix("")) for each in section.pages]
        directives.append("\n".join(["", "```{toctree}", ":hidden:", *caption, "", *pages, "```", ""]))
    return "".join(directives)


def prepare(root: Path, source: Path) -> None:
    """Write the pages with their links and navigation, and the files that they link to, into a folder for Sphinx."""
    for each in doc_pages.pages(root):
        page = each.relative_to(root)
        text, files = rewrite(root, page)
        if doc_pages.is_list(page):
            text += navigation(root, page)
        moved = source / place(page)
        moved.parent.mkdir(parents=True, exist_ok=True)
        moved.write_text(text, encoding="utf-8")
        for file in files:
            copied = source / place(file)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / file, copied)


def check_sphinx(python: Path) -> None:
    """Raise BuildError if the environment that builds the documentation is missing. `python`: its interpreter."""
    if not python.exists():
        raise BuildError(f"{python} is missing, so the documentation can't be built. Run `make site-tools`.")


def run_sphinx(python: Path, source: Path, built: Path, moment: datetime | None) -> None:
    """Build the pages in `source`. Raises BuildError if Sphinx warns, for example of a link that leads nowhere."""
    variables = {"CLUSTERCERT_VERSION": __version__}
    if moment:
        variables["SOURCE_DATE_EPOCH"] = str(int(moment.timestamp()))
    with tempfile.TemporaryDirectory() as cache:
        options = ("-W", "-n", "--keep-going", "-q", "-b", "html", "-d", cache)
        command = (python, "-m", "sphinx", *options, source, built)
        if subprocess.run(command, env=os.environ | variables, check=False).returncode:
            raise BuildError("Sphinx can't build the documentation. Its messages are above.")


def build(out: Path, moment: datetime | None = None) -> None:
    """Build the site into a folder, and replace what is there. The same source gives the same files.

    Args:
        moment: time stamp for Sphinx; by default, the current time.

    Raises BuildError without Sphinx, or if Sphinx warns.
    """
    check_sphinx(PYTHON)
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder, "source"), Path(folder, "built")
        shutil.copytree(SPHINX, source)
        shutil.copy(ICON, source / "static")
        prepare(ROOT, source)
        run_sphinx(PYTHON, source, built, moment)
        (built / ".buildinfo").unlink()  # for the next build in the same folder
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(built, out)


def main() -> None:
    """Build, and say where the home page is."""
    try:
        build(OUT)
    except BuildError as error:
        sys.exit(f"make site: {error}")
    print(f"The home page is {(OUT / 'index.html').relative_to(ROOT)}")


if __name__ == "__main__":
    main()
