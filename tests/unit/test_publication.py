"""The addresses of the project come from one file, and get into the wheel, the chart and the image."""

import os
import subprocess
import sys
import tarfile
from datetime import UTC, datetime
from email.parser import HeaderParser
from pathlib import Path

import pytest
import yaml

from clustercert import __version__
from scripts import chart_archive, image, publication, release
from scripts.build_error import BuildError
from support.publication import ADDRESSES, write_addresses

ROOT = Path(__file__).resolve().parents[2]
MOMENT = datetime(2026, 12, 1, tzinfo=UTC)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The parts of this source that a wheel's metadata and the chart are made from."""
    for name in ("src", "scripts", "deploy", "pyproject.toml", "LICENSE", "NOTICE"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_addresses(tmp_path, {})
    return tmp_path


def metadata(project: Path) -> dict[str, list[str]]:
    """The fields of the wheel's metadata, as pip gets them before it builds a wheel."""
    call = "import hatchling.build as b; print(b.prepare_metadata_for_build_wheel('.'))"
    out = subprocess.run(
        (sys.executable, "-c", call), cwd=project, env=os.environ, check=True, capture_output=True, text=True
    )
    text = (project / out.stdout.strip() / "METADATA").read_text(encoding="utf-8")
    fields = HeaderParser().parsestr(text)
    return {name: fields.get_all(name, []) for name in ("Author", "License-File", "Project-URL")}


def chart(project: Path) -> dict[str, object]:
    chart_archive.build(project, project, __version__, MOMENT)
    with tarfile.open(project / f"clustercert-chart-{__version__}.tgz") as archive:
        file = archive.extractfile("clustercert/Chart.yaml")
        assert file is not None
        about: dict[str, object] = yaml.safe_load(file)
    return {name: about.get(name) for name in ("version", "home", "sources", "icon")}


def test_the_wheel_names_its_authors_and_the_addresses_that_are_filled_in(project: Path) -> None:
    expected = {"Author": ["The clustercert authors"], "License-File": ["LICENSE", "NOTICE"]}
    assert metadata(project) == expected | {"Project-URL": []}
    write_addresses(project, ADDRESSES)
    urls = [f"{name}, {ADDRESSES[name]}" for name in publication.LABELS]
    assert metadata(project) == expected | {"Project-URL": urls}


def test_the_chart_names_the_addresses_that_are_filled_in(project: Path) -> None:
    assert chart(project) == {"version": __version__, "home": None, "sources": None, "icon": None}
    write_addresses(project, ADDRESSES)
    assert chart(project) == {
        "version": __version__,
        "home": ADDRESSES["Homepage"],
        "sources": [ADDRESSES["Source"]],
        "icon": ADDRESSES["icon"],
    }


def test_the_image_has_labels_for_version_and_licence_and_for_the_source_if_filled_in(project: Path) -> None:
    (project / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n")
    prefix = "org.opencontainers.image."
    without = image.labels(project, "0.1.0", MOMENT)
    assert (without[f"{prefix}version"], without[f"{prefix}licenses"]) == ("0.1.0", "Apache-2.0")
    write_addresses(project, ADDRESSES)
    assert image.labels(project, "0.1.0", MOMENT) == without | {f"{prefix}source": ADDRESSES["Source"]}


def test_a_release_needs_every_address_unless_it_is_not_published(project: Path) -> None:
    release.check_addresses(project, unpublished=True)
    with pytest.raises(BuildError, match=r"lacks icon, Homepage, .*Security\. .*ARGS=--unpublished"):
        release.check_addresses(project, unpublished=False)
    write_addresses(project, ADDRESSES | {"Issues": ""})
    with pytest.raises(BuildError, match="lacks Issues"):
        release.check_addresses(project, unpublished=False)
    write_addresses(project, ADDRESSES)
    release.check_addresses(project, unpublished=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('icon = ""\n', "exactly Homepage"),
        ('icon = ""\n[urls]\nHome = ""\n', "exactly Homepage"),
        ('icon = ""\n[urls]\n' + "".join(f'{name} = "http://a"\n' for name in publication.LABELS), "https"),
        ('icon = ""\n[urls\n', "publication.toml"),
    ],
)
def test_a_file_with_other_lines_or_addresses_is_refused(project: Path, text: str, said: str) -> None:
    (project / publication.FILE_NAME).write_text(text)
    with pytest.raises(BuildError, match=said):
        release.check_addresses(project, unpublished=True)


def test_the_file_of_this_source_can_be_read() -> None:
    release.check_addresses(ROOT, unpublished=True)


def test_the_security_policy_says_that_nobody_has_published_as_long_as_addresses_are_missing() -> None:
    policy = (ROOT / "SECURITY.md").read_text()
    is_published = not publication.read(ROOT).missing
    assert ("**Nobody has published the project yet:**" not in policy) is is_published
    assert ("None of it has been done" not in policy) is is_published
