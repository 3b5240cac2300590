"""Builds a release into dist/: packages, SBOMs, container image, Helm chart, documentation and checksums.

`make release` runs it. It publishes nothing. The first run for a version also gives the entries under Unreleased in
CHANGELOG.md a heading with that version and today's date. All time stamps in the files are that date, so the same
source gives the same files at any time. The image also depends on the versions of Debian's packages.
"""

import argparse
import hashlib
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from clustercert import __version__
from scripts import changelog, chart_archive, image, publication, python_packages, site
from scripts.build_error import BuildError
from scripts.changelog import CHANGELOG, ReleaseError
from scripts.folder_archive import compress, pack_folder

ROOT = Path(__file__).resolve().parent.parent
CHECKSUMS = "SHA256SUMS"


def check_committed(root: Path) -> None:
    """Raise BuildError if the source differs from the last commit. Only the change log may differ."""
    if not (root / ".git").exists():  # an unpacked sdist
        return
    status = image.run("git", "status", "--porcelain", cwd=root)
    if changed := [line for line in status.splitlines() if not line.endswith(f" {CHANGELOG}")]:
        raise ReleaseError("These files differ from the last commit. Commit them:\n" + "\n".join(changed))


def check_addresses(root: Path, *, unpublished: bool) -> None:
    """Raise BuildError if publication.toml is wrong or, for a release to publish, has empty lines."""
    try:
        missing = publication.read(root).missing
    except ValueError as error:
        raise ReleaseError(str(error)) from None
    if missing and not unpublished:
        raise ReleaseError(
            f"{publication.FILE_NAME} lacks {', '.join(missing)}. Fill in these addresses, or build files that you"
            " do not publish with `make release ARGS=--unpublished`."
        )


def build_docs(out: Path, version: str, moment: datetime) -> None:
    """Build the site of the documentation, and pack it into the folder `out`."""
    name = f"clustercert-{version}-docs"
    with tempfile.TemporaryDirectory(prefix="clustercert-docs-") as folder:
        built = Path(folder, "site")
        site.build(built, moment)
        content = pack_folder(built, int(moment.timestamp()), prefix=f"{name}/")
    (out / f"{name}.tar.gz").write_bytes(compress(content))


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 hashes of all files in `folder`, sorted by name, as sha256sum does."""
    files = sorted(folder.iterdir())
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
    (folder / CHECKSUMS).write_text(sums, encoding="utf-8")


def main() -> None:
    """Check, prepare, build."""
    parser = argparse.ArgumentParser(description="Build a release into dist/.")
    parser.add_argument(
        "--without-image", action="store_true", help="for machines without apt sources of Debian 13"
    )
    parser.add_argument(
        "--unpublished", action="store_true", help=f"allow empty addresses in {publication.FILE_NAME}"
    )
    options = parser.parse_args()
    out = ROOT / "dist"
    try:
        check_committed(ROOT)
        check_addresses(ROOT, unpublished=options.unpublished)
        site.check_sphinx(site.PYTHON)
        day = changelog.prepare(ROOT, __version__, datetime.now(UTC).date())
        moment = changelog.midnight(day)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        python_packages.build(ROOT, out, moment)
        chart_archive.build(ROOT, out, __version__, moment)
        build_docs(out, __version__, moment)
        if not options.without_image:
            image.build(out, out, moment)
    except BuildError as error:
        sys.exit(f"make release: {error}")
    write_checksums(out)
    for path in sorted(out.iterdir()):
        print(path.relative_to(ROOT))
    print(f"Nothing is published. SECURITY.md lists the next steps for version {__version__} of {day}.")


if __name__ == "__main__":
    main()
