"""What is in the image, and what is not."""

import base64
import csv
import hashlib
import json
import stat
from email.parser import HeaderParser
from typing import Any

import pytest
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation import make_schemabased_validator

from clustercert import __version__
from scripts import image as builder
from scripts import sbom
from support.image_archive import ImageArchive
from support.kubernetes_volumes import USER

pytestmark = pytest.mark.full
SITE_PACKAGES = "usr/local/lib/python3.13/dist-packages/"
STATUS = "var/lib/dpkg/status.d/"


@pytest.fixture(scope="module")
def bill(archive: ImageArchive) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(archive.text("usr/local/share/sbom/clustercert-image.cdx.json"))
    return document


def test_the_only_programs_are_python_and_clustercert(archive: ImageArchive) -> None:
    folders = ("usr/bin/", "usr/sbin/", "usr/local/bin/", "usr/local/sbin/")
    programs = {name for name in archive.members if name.startswith(folders)}
    assert programs == {"usr/bin/python3.13", "usr/local/bin/clustercert"}
    assert [archive.members[name].linkname for name in ("bin", "sbin")] == ["usr/bin", "usr/sbin"]
    names = {name.rpartition("/")[2] for name in archive.content}
    assert not names & {"sh", "bash", "dash", "busybox", "apt", "apt-get", "dpkg", "pip", "perl", "openssl"}


def test_no_file_gives_rights_and_only_root_can_change_files(archive: ImageArchive) -> None:
    others = set()
    for name, member in archive.members.items():
        assert not member.mode & (stat.S_ISUID | stat.S_ISGID), name
        assert member.isfile() or member.isdir() or member.issym(), name
        if (member.uid, member.gid) != (0, 0) or (member.mode & 0o022 and not member.issym()):
            others.add(name)
    assert others == {"tmp", "var/lib/clustercert"}
    state = archive.members["var/lib/clustercert"]
    assert (state.uid, state.gid, state.mode) == (USER, USER, 0o755)


def test_it_is_smaller_than_65_mb(archive: ImageArchive) -> None:
    assert archive.compressed < 65_000_000


def test_it_runs_clustercert_as_a_user_without_rights(archive: ImageArchive) -> None:
    config = archive.config["config"]
    assert config["User"] == f"{USER}:{USER}"
    assert config["Entrypoint"] == ["/usr/local/bin/clustercert"]
    assert config["Labels"]["org.opencontainers.image.version"] == __version__
    assert f"clustercert:x:{USER}:{USER}:" in archive.text("etc/passwd")
    assert archive.text("etc/ssl/certs/ca-certificates.crt").count("BEGIN CERTIFICATE") > 100
    assert "usr/share/zoneinfo/Europe/Berlin" in archive.members


def test_the_sbom_follows_the_schema_of_cyclonedx(bill: dict[str, Any]) -> None:
    validator = make_schemabased_validator(OutputFormat.JSON, SchemaVersion.from_version(sbom.SPEC_VERSION))
    assert validator.validate_str(json.dumps(bill)) is None


def test_the_sbom_names_the_debian_packages_that_scanners_find(
    archive: ImageArchive, bill: dict[str, Any]
) -> None:
    found = [
        HeaderParser().parsestr(archive.text(name))
        for name in archive.content
        if name.startswith(STATUS) and not name.endswith(".md5sums")
    ]
    installed = {(each["Package"], each["Version"]) for each in found}
    named = [each for each in bill["components"] if each.get("purl", "").startswith("pkg:deb/debian/")]
    assert {(each["name"], each["version"]) for each in named} == installed
    assert {name for name, _ in installed} == set(builder.PACKAGES)
    (libc,) = (each["purl"] for each in named if each["name"] == "libc6")
    assert libc.endswith("&distro=debian-13&upstream=glibc")


def test_every_component_of_the_sbom_has_a_license_and_a_supplier(
    archive: ImageArchive, bill: dict[str, Any]
) -> None:
    maintainers = {
        found["Package"]: found["Maintainer"]
        for name in archive.content
        if name.startswith(STATUS) and not name.endswith(".md5sums")
        for found in [HeaderParser().parsestr(archive.text(name))]
    }
    for each in (bill["metadata"]["component"], *bill["components"]):
        assert each["licenses"], each["name"]
        assert each["supplier"]["name"], each["name"]
        if each.get("purl", "").startswith("pkg:deb/debian/"):
            assert maintainers[each["name"]].startswith(f"{each['supplier']['name']} <")
    licenses = {each["name"]: each["licenses"] for each in bill["components"]}
    assert licenses["libgcc-s1"] == [{"expression": "GPL-3.0-or-later WITH GCC-exception-3.1"}]
    assert {"license": {"name": "LGPL-2.1+"}} in licenses["libc6"]


def test_every_file_of_a_debian_package_is_unchanged(archive: ImageArchive) -> None:
    checked = 0
    for name in archive.content:
        if name.startswith(STATUS) and name.endswith(".md5sums"):
            for line in archive.text(name).splitlines():
                digest, path = line.split("  ", 1)
                assert hashlib.md5(archive.content[path], usedforsecurity=False).hexdigest() == digest
                checked += 1
    assert checked > 1000


def test_the_sbom_names_the_packages_of_the_lock_file_that_are_installed(
    archive: ImageArchive, bill: dict[str, Any]
) -> None:
    installed = {
        (found["Name"].lower().replace("_", "-").replace(".", "-"), found["Version"])
        for name in archive.content
        if name.startswith(SITE_PACKAGES) and name.endswith(".dist-info/METADATA")
        for found in [HeaderParser().parsestr(archive.text(name))]
    }
    named = {
        (each["name"], each["version"])
        for each in bill["components"]
        if each.get("purl", "").startswith("pkg:pypi/")
    }
    assert named == installed
    locked = {(each.name, each.version) for each in sbom.read_lock((builder.ROOT / builder.LOCK).read_text())}
    assert installed - locked == {("clustercert", __version__)}
    # For Windows, and for Python in a browser.
    assert {name for name, _ in locked - installed} == {"colorama", "httpx2-jsfetch"}
    assert ("common-expression-language", "0.10.0") in installed
    assert {name for name, _ in installed}.isdisjoint(
        {"prompt-toolkit", "pyreadline3", "textual", "urwid", "wcwidth"}
    )


def test_every_file_of_a_python_package_is_unchanged(archive: ImageArchive) -> None:
    recorded = set()
    for name in archive.content:
        if name.startswith(SITE_PACKAGES) and name.endswith(".dist-info/RECORD"):
            for path, digest, _size in csv.reader(archive.text(name).splitlines()):
                if digest:
                    expected = base64.urlsafe_b64decode(digest.removeprefix("sha256=") + "=")
                    assert hashlib.sha256(archive.content[SITE_PACKAGES + path]).digest() == expected, path
                recorded.add(SITE_PACKAGES + path)
    files = {name for name in archive.content if name.startswith(SITE_PACKAGES)}
    assert {name for name in files if not name.endswith(".pyc")} == recorded


def test_no_file_tells_of_the_machine_that_built_the_image(archive: ImageArchive) -> None:
    places = (str(builder.ROOT).encode(), b"clustercert-image-", b"uv_cache")
    for name, content in archive.content.items():
        assert not any(place in content for place in places), name
        assert archive.members[name].mtime == 1
