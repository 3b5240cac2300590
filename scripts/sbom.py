"""Writes the software bill of materials (SBOM) of the wheel, in the CycloneDX JSON format.

Hatchling runs `SbomBuildHook` when it builds a wheel, and puts the SBOM into `clustercert-*.dist-info/sboms` (PEP 770).
The SBOM names each package in requirements.lock, with its license and supplier from component-licenses.json. Packages
that only the extra `server` needs are optional. This module needs only the standard library and Hatchling, so that a
build of the wheel needs no other package.
"""

import hashlib
import json
import os
import re
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SPEC_VERSION = "1.6"
FILE_NAME = "clustercert.cdx.json"
LOCK = "requirements.lock"
CLIENT_LOCK = "requirements-client.lock"
LICENSES = "component-licenses.json"
AUTHORS = "The clustercert authors"
CLIENT_ENTRY = re.compile(r"^([\w.-]+)==", re.MULTILINE)

# An entry of the lock file: the requirement, its options and the comment about its dependents.
ENTRY = re.compile(
    r"^(?P<name>[\w.-]+)==(?P<version>[^\s;]+)(?: ; (?P<marker>[^\\\n]+?))? \\\n(?P<rest>(?: +.*\n)+)",
    re.MULTILINE,
)
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
# Without the names of constraint files, `-c requirements.lock`.
DEPENDENT = re.compile(r"^ +#(?: via +| {3})(\w[\w.-]*)", re.MULTILINE)
# The name that uv gives to the dependents named in pyproject.toml.
PROJECT = "clustercert"
SERVER_EXTRA = "server"


@dataclass(frozen=True, slots=True)
class LockedPackage:
    """A package in the lock file.

    Attributes:
        marker: the environments that need it (PEP 508), or `None` for all.
        hashes: SHA-256 of each file that pip accepts, lower-case hex.
        dependents: names of the packages that require it. `clustercert` stands for the project.
    """

    name: str
    version: str
    marker: str | None
    hashes: Sequence[str]
    dependents: Sequence[str]

    @property
    def purl(self) -> str:
        """The package URL."""
        return f"pkg:pypi/{self.name}@{self.version}"


def read_lock(text: str) -> list[LockedPackage]:
    """Parse a lock file. Raises ValueError for an entry without hashes or dependents."""
    packages = [
        LockedPackage(
            entry["name"],
            entry["version"],
            entry["marker"],
            tuple(HASH.findall(entry["rest"])),
            tuple(DEPENDENT.findall(entry["rest"])),
        )
        for entry in ENTRY.finditer(text)
    ]
    for package in packages:
        if not package.hashes or not package.dependents:
            raise ValueError(f"{LOCK}: {package.name} has no hashes or no dependents. Run `make lock`.")
    if len(packages) != len(re.findall(r"^[^\s#]", text, re.MULTILINE)):
        raise ValueError(f"{LOCK}: an entry is not of the form NAME==VERSION with hashes. Run `make lock`.")
    return packages


@dataclass(frozen=True, slots=True)
class Terms:
    """Under which license a package is, and from whom it comes.

    Attributes:
        license: SPDX expression.
        supplier: names of its authors or maintainers.
    """

    license: str
    supplier: str


def read_terms(root: Path, packages: Sequence[LockedPackage]) -> dict[str, Terms]:
    """Read the terms of the locked packages, by name. Raises ValueError if a package is missing in this version."""
    entries = json.loads((root / LICENSES).read_text(encoding="utf-8"))
    for package in packages:
        if entries.get(package.name, {}).get("version") != package.version:
            raise ValueError(f"{LICENSES} has no {package.name} {package.version}. Run `make lock`.")
    return {
        each.name: Terms(entries[each.name]["license"], entries[each.name]["supplier"]) for each in packages
    }


def document(root: Path, project_version: str) -> dict[str, Any]:
    """Create the SBOM for the project in `root`. The same files give the same SBOM."""
    packages = read_lock((root / LOCK).read_text(encoding="utf-8"))
    client = set(CLIENT_ENTRY.findall((root / CLIENT_LOCK).read_text(encoding="utf-8")))
    terms = read_terms(root, packages)
    project = f"pkg:pypi/{PROJECT}@{project_version}"
    return bill(
        _metadata(project, project_version),
        [
            component(package, terms[package.name], None if package.name in client else SERVER_EXTRA)
            for package in packages
        ],
        requirements(packages, project),
    )


def requirements(packages: Sequence[LockedPackage], project: str) -> dict[str, list[str]]:
    """Return which component requires which, by their references. `project` is that of the project's wheel."""
    refs = {PROJECT: project} | {package.name: package.purl for package in packages}
    requires: dict[str, list[str]] = {ref: [] for ref in refs.values()}
    for package in packages:
        for dependent in package.dependents:
            requires[refs[dependent]].append(package.purl)
    return requires


def bill(
    metadata: dict[str, Any], components: Sequence[dict[str, Any]], requires: dict[str, list[str]]
) -> dict[str, Any]:
    """Put an SBOM together. Its serial number depends on its content only."""
    bom = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "version": 1,
        "metadata": metadata,
        "components": list(components),
        "dependencies": [{"ref": ref, "dependsOn": sorted(on)} for ref, on in sorted(requires.items())],
    }
    digest = hashlib.sha256(json.dumps(bom, sort_keys=True).encode()).hexdigest()
    return bom | {"serialNumber": uuid.uuid5(uuid.NAMESPACE_OID, digest).urn}


def _metadata(ref: str, project_version: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "lifecycles": [{"phase": "build"}],
        "tools": {
            "components": [{"type": "application", "name": "hatchling", "version": version("hatchling")}]
        },
        "component": application(ref, project_version),
    }
    # Source: https://reproducible-builds.org/specs/source-date-epoch/
    if epoch := os.environ.get("SOURCE_DATE_EPOCH"):
        metadata["timestamp"] = datetime.fromtimestamp(int(epoch), UTC).isoformat()
    return metadata


def application(ref: str, project_version: str) -> dict[str, Any]:
    """The component for the project itself."""
    return {
        "type": "application",
        "bom-ref": ref,
        "name": PROJECT,
        "version": project_version,
        "supplier": {"name": AUTHORS},
        "licenses": [{"license": {"id": "Apache-2.0"}}],
        "purl": ref,
    }


def component(package: LockedPackage, terms: Terms, extra: str | None) -> dict[str, Any]:
    """The component for a package. `extra` names the extra that installs it, `None` if the client needs it."""
    conditions = {"marker": package.marker, "extra": extra}
    properties = [
        {"name": f"clustercert:{name}", "value": value} for name, value in conditions.items() if value
    ]
    described: dict[str, Any] = {
        "type": "library",
        "bom-ref": package.purl,
        "name": package.name,
        "version": package.version,
        "supplier": {"name": terms.supplier},
        "licenses": [{"expression": terms.license}],
        "scope": "optional" if properties else "required",
        "purl": package.purl,
        # Hashes of a component would be those of one file. A package has several, one for each platform.
        "externalReferences": [
            {
                "type": "distribution",
                "url": package.purl,
                "comment": "the files that the lock file accepts",
                "hashes": [{"alg": "SHA-256", "content": digest} for digest in package.hashes],
            }
        ],
    }
    if properties:
        described["properties"] = properties
    return described


class SbomBuildHook(BuildHookInterface[BuilderConfig]):
    """Adds the SBOM to each wheel, except editable ones."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the SBOM to a temporary folder, from which Hatchling copies it."""
        if version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory(prefix="clustercert-sbom-")
        path = Path(self._folder.name, FILE_NAME)
        bom = document(Path(self.root), self.metadata.version)
        path.write_text(json.dumps(bom, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        build_data["sbom_files"].append(str(path))

    def finalize(
        self,
        version: str,
        build_data: dict[str, Any],  # noqa: ARG002 - Hatchling's signature
        artifact_path: str,  # noqa: ARG002 - the same
    ) -> None:
        """Delete the temporary folder."""
        if version != "editable":
            self._folder.cleanup()
