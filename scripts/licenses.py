"""Writes the licenses and suppliers of the locked packages to component-licenses.json. `make lock` runs it.

It downloads the wheels, also those for other platforms, and reads their metadata. The SBOMs are made from the file, so
that a build of the wheel needs no other package. Run it with an environment that has pip.
"""

import email.utils
import json
import subprocess
import sys
import tempfile
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

FILE_NAME = "component-licenses.json"
LOCKS = ("requirements.lock", "requirements-image.lock")

# SPDX identifiers of the licenses that older metadata names in other words.
IDENTIFIERS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "ISC License": "ISC",
    "License :: OSI Approved :: MIT License": "MIT",
}
# Licenses that the metadata names ambiguously, from the license files in the wheels.
AMBIGUOUS = {"colorama": "BSD-3-Clause", "jinja2": "BSD-3-Clause", "uvloop": "MIT OR Apache-2.0"}


def license_expression(name: str, fields: Message) -> str:
    """Return the license as an SPDX expression. A test checks that it is one."""
    stated = fields.get("License-Expression") or AMBIGUOUS.get(name) or fields.get("License")
    classifiers = [each for each in fields.get_all("Classifier", []) if each.startswith("License ::")]
    if stated is None and len(classifiers) == 1:
        stated = classifiers[0]
    if stated is None:
        sys.exit(f"make lock: the metadata of {name} names no license. Add it to AMBIGUOUS in {__file__}.")
    return IDENTIFIERS.get(stated, stated)


def supplier(name: str, fields: Message) -> str:
    """Return the names of the authors or, if there are none, of the maintainers."""
    for role in ("Author", "Maintainer"):
        if stated := fields.get(role):
            return stated
        if addresses := fields.get(f"{role}-email"):
            return ", ".join(person or address for person, address in email.utils.getaddresses([addresses]))
    sys.exit(f"make lock: the metadata of {name} names no author and no maintainer.")


def describe(wheel: Path) -> tuple[str, dict[str, str]]:
    """Return the name of the package in a wheel, and its entry in the file."""
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (
            each
            for each in archive.namelist()
            if each.endswith(".dist-info/METADATA") and each.count("/") == 1
        )
        fields = HeaderParser().parsestr(archive.read(path).decode("utf-8"))
    name = fields["Name"].lower().replace("_", "-").replace(".", "-")
    return name, {
        "version": fields["Version"],
        "license": license_expression(name, fields),
        "supplier": supplier(name, fields),
    }


def without_markers(lock: str) -> str:
    """Return a lock file without environment markers, so that pip downloads every package."""
    lines = (line.split(" ; ")[0] + " \\" if " ; " in line else line for line in lock.splitlines())
    return "\n".join(lines) + "\n"


def main() -> None:
    """Download, read, write."""
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory(prefix="clustercert-wheels-") as folder:
        for name in LOCKS:
            lock = Path(folder, name)
            lock.write_text(without_markers((root / name).read_text(encoding="utf-8")), encoding="utf-8")
            subprocess.run(
                [
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
                    *("--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "--require-hashes"),
                    *("--dest", folder, "--requirement", lock),
                ],
                check=True,
            )
        described = dict(sorted(map(describe, Path(folder).glob("*.whl"))))
    text = json.dumps(described, indent=2, ensure_ascii=False)
    (root / FILE_NAME).write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
