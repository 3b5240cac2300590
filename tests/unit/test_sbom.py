"""The SBOM names what the service consists of, in valid CycloneDX."""

import json
import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation import make_schemabased_validator
from packaging.licenses import canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts import sbom

ROOT = Path(__file__).resolve().parents[2]
ENTRY = "a==1 \\\n    --hash=sha256:" + "0" * 64 + "\n    # via clustercert (pyproject.toml)\n"


@pytest.fixture
def document() -> dict[str, Any]:
    return sbom.document(ROOT, "0.1.0")


def version_of(document: dict[str, Any], name: str) -> str:
    (version,) = (str(each["version"]) for each in document["components"] if each["name"] == name)
    return version


def test_every_locked_package_has_its_version_and_hashes(document: dict[str, Any]) -> None:
    locked: dict[str, set[str]] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if "==" in line:
            locked[line.split()[0]] = current = set()
        elif "--hash" in line:
            current.add(line.split("sha256:")[1].split()[0])
    named = {
        f"{component['name']}=={component['version']}": {
            digest["content"]
            for reference in component["externalReferences"]
            for digest in reference["hashes"]
        }
        for component in document["components"]
        if component["purl"].startswith("pkg:pypi/")
    }
    assert len(locked) > 40
    assert named == locked


def test_it_follows_the_schema_of_cyclonedx(document: dict[str, Any]) -> None:
    validator = make_schemabased_validator(OutputFormat.JSON, SchemaVersion.from_version(sbom.SPEC_VERSION))
    assert validator.validate_str(json.dumps(document)) is None
    document["metadata"]["component"]["licenses"][0]["license"]["id"] = "none"
    assert validator.validate_str(json.dumps(document)) is not None


def test_it_says_which_component_requires_which(document: dict[str, Any]) -> None:
    components = {component["bom-ref"]: component["name"] for component in document["components"]}
    root = document["metadata"]["component"]["bom-ref"]
    requires = {each["ref"]: each["dependsOn"] for each in document["dependencies"]}
    assert requires.keys() == {root, *components}
    assert {components[ref] for ref in requires[root]} > {"fastapi", "cryptography"}
    assert [
        components[ref] for ref in requires["pkg:pypi/httpcore2@" + version_of(document, "httpcore2")]
    ] == [
        "h11",
        "truststore",
    ]
    reached, new = set[str](), {root}
    while new:
        reached |= new
        new = {on for ref in new for on in requires[ref]} - reached
    assert reached == set(requires)


def test_every_component_has_a_supplier_and_an_spdx_license_as_in_the_metadata_of_its_wheel(
    document: dict[str, Any],
) -> None:
    project = document["metadata"]["component"]
    assert project["supplier"] == {"name": "The clustercert authors"}
    compared = 0
    for component in document["components"]:
        assert component["supplier"]["name"].strip(), component["name"]
        (license_,) = component["licenses"]
        assert canonicalize_license_expression(license_["expression"]) == license_["expression"]
        try:
            fields = metadata(component["name"])
        except PackageNotFoundError:  # for other platforms
            continue
        assert fields["Version"] == component["version"]
        if stated := fields.get("License-Expression"):
            assert license_["expression"] == stated
            compared += 1
    assert compared > 30


def test_a_package_whose_license_was_not_read_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no a 1\. Run `make lock`"):
        sbom.read_terms(ROOT, sbom.read_lock(ENTRY))


def test_the_packages_of_the_image_have_licenses_too() -> None:
    terms = sbom.read_terms(ROOT, sbom.read_lock((ROOT / "requirements-image.lock").read_text()))
    for each in terms.values():
        assert canonicalize_license_expression(each.license) == each.license
        assert each.supplier


def test_the_same_source_gives_the_same_sbom_with_the_time_of_the_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767225600")
    first, again = (sbom.document(ROOT, "0.1.0") for _ in range(2))
    assert first == again
    assert first["metadata"]["timestamp"] == "2026-01-01T00:00:00+00:00"
    assert first["serialNumber"] != sbom.document(ROOT, "0.1.1")["serialNumber"]


def test_a_marker_makes_a_package_optional() -> None:
    (package,) = sbom.read_lock(ENTRY.replace("==1", "==1 ; sys_platform == 'win32'"))
    assert (package.version, package.marker) == ("1", "sys_platform == 'win32'")
    assert sbom.component(package, sbom.Terms("MIT", "Alice"), None)["scope"] == "optional"


def test_packages_for_the_service_alone_are_optional(document: dict[str, Any]) -> None:
    scopes = {each["name"]: (each["scope"], each.get("properties")) for each in document["components"]}
    assert scopes["cryptography"] == ("required", None)
    assert scopes["sqlalchemy"] == ("optional", [{"name": "clustercert:extra", "value": "server"}])


def test_each_lock_file_satisfies_the_project_and_the_client_needs_few_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    client, server = project["dependencies"], project["optional-dependencies"]["server"]
    required = {
        "requirements.lock": [*client, *server],
        "requirements-client.lock": client,
        "requirements-dev.lock": [*client, *server],
    }
    for lock, requirements in required.items():
        locked = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / lock).read_text(), re.MULTILINE))
        for requirement in map(Requirement, requirements):
            assert locked[canonicalize_name(requirement.name)] in requirement.specifier, (lock, requirement)
        if lock == "requirements-client.lock":
            assert locked.keys().isdisjoint({"fastapi", "httpx2", "pydantic", "sqlalchemy", "uvicorn"})
            assert len(locked) <= 15


@pytest.mark.parametrize(
    "lock",
    [
        ENTRY.replace("sha256:0", "sha256:"),
        ENTRY.partition("    # via")[0],
        ENTRY + "b==2\n",
        ENTRY + "b @ https://example.com/b.whl\n",
    ],
)
def test_an_entry_without_version_hashes_or_dependents_is_refused(lock: str) -> None:
    assert len(sbom.read_lock(ENTRY)) == 1
    with pytest.raises(ValueError, match="make lock"):
        sbom.read_lock(lock)
