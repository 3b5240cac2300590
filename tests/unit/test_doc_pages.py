"""The lists of the documentation, and the pages of its site that come from them."""

from pathlib import Path

import pytest

from scripts import check_docs, doc_pages, site
from scripts.doc_pages import HOME, Section


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout with a list of all its pages."""
    _write(
        tmp_path,
        "docs/README.md",
        "# Documentation\n\n- [What it is](../README.md)\n\n## I run it\n\nSee [login](login.md).\n"
        "\n### Set it up\n\n- [Install](install.md): in a minute\n- [Chart](../deploy/chart/README.md)\n"
        "\n## I check it\n\n- [Install](install.md#check): once more\n- [Log in](login.md)\n"
        "- [Evidence](evidence/README.md)\n",
    )
    _write(tmp_path, "docs/evidence/README.md", "| how fast? | [speed](speed.md) |\n")
    for page in (
        "README.md",
        "docs/install.md",
        "docs/login.md",
        "docs/evidence/speed.md",
        "deploy/chart/README.md",
    ):
        _write(tmp_path, page, "# A page\n")
    return tmp_path


def _write(root: Path, page: str, text: str) -> None:
    (root / page).parent.mkdir(parents=True, exist_ok=True)
    (root / page).write_text(text)


def _append(root: Path, page: str, text: str) -> None:
    _write(root, page, (root / page).read_text() + text)


def test_the_sections_of_a_list_name_pages_in_its_order(checkout: Path) -> None:
    assert doc_pages.sections(checkout, HOME) == [
        Section("", (Path("README.md"),)),
        Section("I run it: set it up", (Path("docs/install.md"), Path("deploy/chart/README.md"))),
        Section("I check it", (Path("docs/login.md"), Path("docs/evidence/README.md"))),
    ]


def test_pages_that_are_listed_once_are_accepted(checkout: Path) -> None:
    assert [*check_docs.wrongly_listed(checkout)] == []


def test_a_page_that_is_not_listed_is_reported(checkout: Path) -> None:
    _write(checkout, "docs/evidence/attacks.md", "# Attacks\n")
    assert [*check_docs.wrongly_listed(checkout)] == [
        "docs/evidence/attacks.md: is listed 0 times. List it once, in docs/evidence/README.md"
    ]


def test_a_page_behind_two_doors_is_reported(checkout: Path) -> None:
    _append(checkout, "docs/README.md", "\n## I change it\n\n- [Install](install.md)\n")
    assert [*check_docs.wrongly_listed(checkout)] == [
        "docs/install.md: is listed 2 times. List it once, in docs/README.md"
    ]


def test_links_lead_to_the_places_of_pages_in_the_site(checkout: Path) -> None:
    _write(
        checkout, "docs/install.md", "[It](../README.md#try), [chart](../deploy/chart/README.md), [up](#a)\n"
    )
    _write(
        checkout,
        "deploy/chart/README.md",
        "[how\nto](../../docs/evidence/speed.md) [home](../../docs/README.md)\n",
    )
    assert site.rewrite(checkout, Path("docs/install.md")) == (
        "[It](README.md#try), [chart](deploy/chart/README.md), [up](#a)\n",
        set(),
    )
    assert site.rewrite(checkout, Path("deploy/chart/README.md")) == (
        "[how\nto](../../evidence/speed.md) [home](../../index.md)\n",
        set(),
    )


def test_a_linked_file_is_copied_and_a_linked_folder_becomes_text(checkout: Path) -> None:
    _write(checkout, "deploy/alerts.yaml", "groups: []\n")
    _write(
        checkout, "docs/login.md", "[alerts](../deploy/alerts.yaml) in [deploy](../deploy), ![now](now.png)\n"
    )
    assert site.rewrite(checkout, Path("docs/login.md")) == (
        "[alerts](deploy/alerts.yaml) in deploy, ![now](now.png)\n",
        {Path("deploy/alerts.yaml"), Path("docs/now.png")},
    )


def test_blocks_and_addresses_stay_as_they_are(checkout: Path) -> None:
    text = "[site](https://example.com/README.md)\n```sh\n[link](../README.md)\n```\n"
    _write(checkout, "docs/login.md", text)
    assert site.rewrite(checkout, Path("docs/login.md")) == (text, set())


@pytest.mark.parametrize(
    "text",
    [
        "$ pipx install clustercert\n",
        "Run `pip install\nclustercert`.",
        "    # pip3 install --user\n    # clustercert",
        "`python3 -m pip install -U 'clustercert[server]'`",
        "pip install clustercert==0.1.0",
        "`uvx clustercert status`",
        "`uv tool install clustercert`",
        'm.command("pip install clustercert")',
    ],
)
@pytest.mark.parametrize("file", ["docs/login.md", "SECURITY.md", "src/clustercert/a.py", "deploy/ci/a.yml"])
def test_a_command_that_installs_clustercert_by_name_is_reported(
    checkout: Path, file: str, text: str
) -> None:
    _write(checkout, file, f"# A page\n\n{text}")
    (fault,) = check_docs.unowned_installs(checkout)
    assert fault.startswith(f"{file}:3: installs clustercert")


def test_commands_that_install_a_file_or_another_package_are_accepted(checkout: Path) -> None:
    for text in (
        "$ pipx install ./clustercert-0.1.0-py3-none-any.whl\n$ clustercert login https://clustercert.example.com\n",
        "`pip install './clustercert-0.1.0-py3-none-any.whl[server]'`, then run clustercert.\n",
        "/opt/clustercert/bin/pip install --require-hashes -r requirements.lock clustercert/x\n",
        "First install pipx. Then clustercert works. Don't install `clustercert` by name.\n",
        "pip install python-openstackclient\n",
    ):
        _append(checkout, "docs/login.md", text)
    assert [*check_docs.unowned_installs(checkout)] == []
