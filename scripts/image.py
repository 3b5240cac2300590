"""Builds the container image into dist/, as an archive in the OCI format. Publishes nothing. `make image` runs it.

The image contains Debian packages, the packages in requirements-image.lock and the project's wheel. It has no shell and
no package manager. The same source and the same versions of Debian's packages give the same digest. Only apt, dpkg and
gzip are needed, and no root rights: nothing in the packages is run except Python, which compiles its modules.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import quote

from clustercert import __version__
from scripts import changelog, publication, python_packages, sbom
from scripts.build_error import BuildError
from scripts.folder_archive import Owner
from scripts.oci_archive import Layer, pack_layer, write_archive

ROOT = Path(__file__).resolve().parent.parent
LOCK = "requirements-image.lock"
UV = ROOT / ".venvs" / "uv" / "bin" / "uv"

# The variable that names a file of apt sources (deb822 format), such as those of a snapshot.
SOURCES_VARIABLE = "DEBIAN_SOURCES"
DEBIAN_VERSION = "13"
SUITES = ("trixie", "trixie-updates", "trixie-security")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# What Python and the packages of the lock file load. gcc-14-base has the licences of libgcc-s1 and libstdc++6.
# Dependencies are not resolved, because those of ca-certificates, tzdata and python3.13 include a shell and Perl. A
# test loads every library in the image.
PACKAGES = (
    "base-files",
    "ca-certificates",
    "gcc-14-base",
    "libbz2-1.0",
    "libc6",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "liblzma5",
    "libpython3.13-minimal",
    "libpython3.13-stdlib",
    "libsqlite3-0",
    "libssl3t64",
    "libstdc++6",
    "libuuid1",
    "libzstd1",
    "python3.13-minimal",
    "tzdata",
    "zlib1g",
)
PYTHON = "usr/bin/python3.13"
STDLIB = "usr/lib/python3.13"
SITE_PACKAGES = "usr/local/lib/python3.13/dist-packages"
SBOM = "usr/local/share/sbom/clustercert-image.cdx.json"
# Patterns of the files to copy from Debian's packages, and of exceptions. `*` matches slashes too.
KEPT = (
    "bin",
    "lib",
    "lib64",
    "sbin",
    "etc/debian_version",
    "etc/os-release",
    PYTHON,
    "usr/lib/os-release",
    "usr/lib/*-linux-gnu/*",
    f"{STDLIB}/*",
    "usr/lib64/*",
    "usr/share/common-licenses/*",
    "usr/share/doc/*/copyright",
    "usr/share/zoneinfo/*",
)
LEFT_OUT = (
    "usr/lib/*-linux-gnu/gconv/*",
    # Libraries that debug programs.
    "usr/lib/*-linux-gnu/lib*debug.so*",
    "usr/lib/*-linux-gnu/libmemusage.so",
    "usr/lib/*-linux-gnu/libpcprofile.so",
    "usr/lib/*-linux-gnu/libthread_db.so*",
    # Modules for tests, and modules that need ncurses, readline or Berkeley DB.
    f"{STDLIB}/lib-dynload/_curses*",
    f"{STDLIB}/lib-dynload/_dbm*",
    f"{STDLIB}/lib-dynload/*test*",
    f"{STDLIB}/lib-dynload/readline*",
    f"{STDLIB}/lib-dynload/xx*",
    f"{STDLIB}/ensurepip/*",
    f"{STDLIB}/pydoc_data/*",
    f"{STDLIB}/test/*",
    f"{STDLIB}/sitecustomize.py",  # a link to a file in /etc that does nothing
)
# Modules that the service never imports. Compiled, they would add 4 MB to the compressed image.
NOT_COMPILED = r"/(pygments|testing|mssql|mysql|oracle)/"
CA_CERTIFICATES = "usr/share/ca-certificates/mozilla"
CA_BUNDLE = "etc/ssl/certs/ca-certificates.crt"
STATE = "var/lib/clustercert"
CONFIG = "etc/clustercert/clustercert.toml"
USER = 65532
FILES = {
    "etc/passwd": (
        f"root:x:0:0:root:/root:/nonexistent\nclustercert:x:{USER}:{USER}:clustercert:/{STATE}:/nonexistent\n"
    ),
    "etc/group": f"root:x:0:\nclustercert:x:{USER}:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
FOLDERS = ("dev", "proc", "run", "sys", "tmp", STATE)
OWNERS = {"tmp": Owner(0, 0, 0o1777), STATE: Owner(USER, USER, 0o755)}
# Worker processes import this file too.
COMMAND = """\
#!/usr/bin/python3.13 -I
import sys
from clustercert.__main__ import main
if __name__ == "__main__":
    sys.exit(main())
"""
SETTINGS = f"""\
# Settings of the image. Mount your own file here, or set CLUSTERCERT_… variables.
data_dir = "/{STATE}/data"

[server]
host = "0.0.0.0"
port = 8443

[webhook]
host = "0.0.0.0"
port = 8444
"""


# Debian's copyright files of these sources are not machine-readable: the license of the files in the image, and the
# words that the copyright file must contain.
UNSTRUCTURED_LICENSES = {
    "gcc-14": ("GPL-3.0-or-later WITH GCC-exception-3.1", "GCC Runtime Library Exception"),
    "python3.13": ("PSF-2.0", "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2"),
}
# The first line of machine-readable copyright files, and the names of licenses in them. Source:
# https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
COPYRIGHT_FORMAT = re.compile(r"^Format: .*/copyright-format/1\.0/?$", re.MULTILINE)
COPYRIGHT_LICENSE = re.compile(r"^License: *(\S.*?) *$", re.MULTILINE)


class ImageError(BuildError):
    """The image cannot be built on this machine or from this source."""


@dataclass(frozen=True, slots=True)
class DebianPackage:
    """A Debian package in the image.

    Attributes:
        maintainer: who maintains it in Debian, without address.
        control: the fields of the package's control file.
        digest: SHA-256 of the .deb, lower-case hex.
    """

    name: str
    version: str
    architecture: str
    source: str
    maintainer: str
    control: str
    digest: str

    @property
    def purl(self) -> str:
        """The package URL."""
        name, version = quote(self.name), quote(self.version, safe="~")
        origin = f"&upstream={quote(self.source)}" if self.source != self.name else ""
        return (
            f"pkg:deb/debian/{name}@{version}?arch={self.architecture}&distro=debian-{DEBIAN_VERSION}{origin}"
        )


@dataclass(frozen=True, slots=True)
class Image:
    """A built image.

    Attributes:
        digest: digest of the manifest, `sha256:…`.
        compressed, unpacked: sizes of all layers in bytes.
    """

    path: Path
    digest: str
    compressed: int
    unpacked: int


def run(*command: str | Path, env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> str:
    """Return the output of a command. Raises ImageError with the command's messages if it fails."""
    try:
        done = subprocess.run(
            command, cwd=cwd, env=os.environ | (env or {}), capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise ImageError(f"The command {command[0]} is missing. Install it.") from None
    if done.returncode:
        raise ImageError(f"{' '.join(map(str, command[:3]))} … failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def source_moment(root: Path, version: str) -> datetime:
    """Return the time stamp for the image: the day of the release, or the time of the last commit.

    The wheel in the image of a release is therefore the released wheel. SOURCE_DATE_EPOCH overrides both.
    """
    if epoch := os.environ.get("SOURCE_DATE_EPOCH"):
        try:
            return datetime.fromtimestamp(int(epoch), UTC)
        except (ValueError, OverflowError, OSError):
            raise ImageError(
                f"SOURCE_DATE_EPOCH is {epoch!r}. Set it to a number of seconds since 1970."
            ) from None
    if day := released_on(root, version):
        return changelog.midnight(day)
    if not (root / ".git").exists():
        raise ImageError("This source is neither a release nor a git checkout. Set SOURCE_DATE_EPOCH.")
    return datetime.fromtimestamp(int(run("git", "log", "-1", "--format=%ct", cwd=root)), UTC)


def released_on(root: Path, version: str) -> date | None:
    """Return the day on which this version was released; `None` if there are later changes."""
    with contextlib.suppress(changelog.ReleaseError):
        return changelog.release_day(root, version)
    return None


def revision(root: Path, version: str) -> str | None:
    """Return the commit of a build between releases, with `-dirty` if the source differs from the commit.

    `None` for a release: its sdist has no commit, and must give the same image.
    """
    if released_on(root, version) is not None or not (root / ".git").exists():
        return None
    return run("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*", cwd=root).strip()


def debian_sources(folder: Path) -> Path:
    """Return a file with apt sources of Debian: the named one, or this machine's own."""
    if named := os.environ.get(SOURCES_VARIABLE):
        if not Path(named).is_file():
            raise ImageError(f"{SOURCES_VARIABLE} names {named}, which is not a file.")
        return Path(named).resolve()
    line = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(SIGNED_BY)"
    targets = run("apt-get", "indextargets", "--format", line, "Created-By: Packages").splitlines()
    sources = []
    for target in dict.fromkeys(targets):
        uri, suite, component, keyring, *_ = target.split(" ")
        if suite in SUITES and component == "main":
            # Only what Debian has signed.
            signed_by = keyring if keyring.startswith("/") else KEYRING
            sources.append(
                f"Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\nSigned-By: {signed_by}\n"
            )
    if not sources:
        raise ImageError(
            f"apt on this machine has no sources of Debian {DEBIAN_VERSION}. Name a file with such sources in"
            f" {SOURCES_VARIABLE}."
        )
    path = folder / "debian.sources"
    path.write_text("\n".join(sources), encoding="utf-8")
    return path


def download_packages(folder: Path, architecture: str) -> list[Path]:
    """Download Debian's packages, whose hashes apt compares with signed lists. Returns their files, sorted."""
    sources, state, debs = folder / "sources", folder / "apt", folder / "debs"
    for each in (sources, state / "state" / "lists" / "partial", state / "cache", debs):
        each.mkdir(parents=True)
    shutil.copy(debian_sources(folder), sources / "debian.sources")
    (state / "status").touch()
    # Nothing of this machine's apt but its proxies and certificates: no sources, no pins, no installed packages.
    options = {
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": sources,
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State": state / "state",
        "Dir::State::Status": state / "status",
        "Dir::Cache": state / "cache",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "",
        "APT::Update::Error-Mode": "any",
        "Acquire::Languages": "none",
        "Acquire::Retries": "5",
    }
    apt = ["apt-get", "--quiet", *(f"--option={name}={value}" for name, value in options.items())]
    run(*apt, "update")
    run(*apt, "download", *PACKAGES, cwd=debs)
    files = sorted(debs.iterdir())
    if len(files) != len(PACKAGES):
        raise ImageError(f"apt downloaded {len(files)} packages instead of {len(PACKAGES)}.")
    return files


def unpack_package(deb: Path, root: Path, scratch: Path) -> DebianPackage:
    """Copy the needed files of a Debian package to `root`, and write what scanners read about the package."""
    data, control_folder = scratch / "data", scratch / "control"
    scratch.mkdir()
    run("dpkg-deb", "--extract", deb, data)
    run("dpkg-deb", "--control", deb, control_folder)
    kept = set()
    for path in sorted(data.rglob("*")):
        name = path.relative_to(data).as_posix()
        if (path.is_symlink() or path.is_file()) and is_needed(name, is_link=path.is_symlink()):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            path.rename(root / name)
            kept.add(name)
    if (data / CA_CERTIFICATES).is_dir():
        certificates = sorted((data / CA_CERTIFICATES).iterdir())
        write(root / CA_BUNDLE, "".join(each.read_text("ascii").rstrip("\n") + "\n" for each in certificates))
    control = (control_folder / "control").read_text(encoding="utf-8")
    fields = dict(line.split(": ", 1) for line in control.splitlines() if not line.startswith(" "))
    package = DebianPackage(
        fields["Package"],
        fields["Version"],
        fields["Architecture"],
        fields.get("Source", fields["Package"]).split(" ")[0],
        fields["Maintainer"].partition(" <")[0],
        control,
        hashlib.sha256(deb.read_bytes()).hexdigest(),
    )
    # As distroless images have it. With the list of files, scanners do not report Python a second time.
    status = root / "var" / "lib" / "dpkg" / "status.d"
    write(status / package.name, control)
    sums = (control_folder / "md5sums").read_text(encoding="utf-8").splitlines(keepends=True)
    write(status / f"{package.name}.md5sums", "".join(line for line in sums if line.split()[1] in kept))
    shutil.rmtree(scratch)
    return package


def is_needed(name: str, *, is_link: bool) -> bool:
    """Whether the image needs a file of a Debian package."""
    if is_link and fnmatch(name, "usr/share/doc/*") and name.count("/") == 3:  # noqa: PLR2004
        return True  # the licence is in the folder of another package
    return any(fnmatch(name, each) for each in KEPT) and not any(fnmatch(name, each) for each in LEFT_OUT)


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def make_system(folder: Path, root: Path, architecture: str) -> list[DebianPackage]:
    """Create the lowest layer in `root`: Debian's packages, users and folders. Returns the packages."""
    debs = download_packages(folder, architecture)
    packages = [unpack_package(deb, root, folder / "unpacked") for deb in debs]
    for name, content in FILES.items():
        write(root / name, content)
    for name in FOLDERS:
        (root / name).mkdir(parents=True)
    # The file in which OpenSSL looks by default.
    (root / "usr" / "lib" / "ssl").mkdir()
    (root / "usr" / "lib" / "ssl" / "cert.pem").symlink_to(f"/{CA_BUNDLE}")
    compile_modules(root, root, STDLIB)
    return packages


def compile_modules(system: Path, root: Path, name: str) -> None:
    """Compile the Python modules in a folder with the image's Python. The same modules give the same files.

    The loader of the image runs Python, so that neither root rights nor a container are needed. Without compiled
    modules, which a read-only container can't keep, a start takes 4.5 s of processor time instead of 2.1 s.
    """
    (libraries,) = (system / "usr" / "lib").glob("*-linux-gnu")
    (loader,) = libraries.glob("ld-linux-*.so.*")
    # `unchecked-hash`: Python does not compare time stamps of source files.
    compileall = (
        "-m",
        "compileall",
        "-q",
        "--invalidation-mode=unchecked-hash",
        "-x",
        NOT_COMPILED,
        "-s",
        root,
        "-p",
        "/",
    )
    run(
        *(loader, "--library-path", libraries, system / PYTHON, "-BPs", *compileall, root / name),
        env={"PYTHONHOME": str(system / "usr"), "PYTHONHASHSEED": "0"},
    )


def install(root: Path, *requirements: str | Path) -> None:
    """Install wheels into `root`, without the scripts of packages, which would name this machine's Python."""
    target = root / SITE_PACKAGES
    run(
        *(UV, "pip", "install", "--quiet", "--target", target, "--python-version", "3.13"),
        *("--python-platform", f"{platform.machine()}-manylinux_2_40", "--only-binary", ":all:"),
        *("--link-mode", "copy", "--no-compile-bytecode", *requirements),
        env={"UV_SYSTEM_CERTS": "true"},
    )
    shutil.rmtree(target / "bin", ignore_errors=True)
    (target / ".lock").unlink(missing_ok=True)
    for record in target.glob("*.dist-info/RECORD"):
        # uv writes times of files on this machine.
        record.with_name("uv_cache.json").unlink(missing_ok=True)
        lines = record.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = (line for line in lines if not line.startswith("bin/") and "/uv_cache.json," not in line)
        record.write_text("".join(kept), encoding="utf-8")


def image_sbom(
    packages: Sequence[DebianPackage], system: Path, installed: Path, moment: datetime
) -> dict[str, Any]:
    """Create the SBOM of the image: Debian's packages in `system`, the project, and the packages in `installed`.

    It has no hash of the wheel, which depends on the version of zlib that compresses the wheel.
    """
    project = f"pkg:pypi/{sbom.PROJECT}@{__version__}"
    names = {each.name.split("-")[0].replace("_", "-").lower() for each in installed.glob("*.dist-info")}
    locked = [
        replace(each, marker=None)
        for each in sbom.read_lock((ROOT / LOCK).read_text(encoding="utf-8"))
        if each.name in names
    ]
    terms = sbom.read_terms(ROOT, locked)
    requires = sbom.requirements(locked, project)
    requires |= {each.purl: [] for each in packages}
    image = f"{sbom.PROJECT}-image"
    requires[image] = [project, *(each.purl for each in packages)]
    metadata = {
        "lifecycles": [{"phase": "build"}],
        "timestamp": moment.isoformat(),
        "component": {
            "type": "container",
            "bom-ref": image,
            "name": sbom.PROJECT,
            "version": __version__,
            "supplier": {"name": sbom.AUTHORS},
            "licenses": [{"license": {"id": "Apache-2.0"}}],
        },
    }
    components = [
        {
            "type": "operating-system",
            "name": "debian",
            "version": DEBIAN_VERSION,
            "supplier": {"name": "Debian"},
            "licenses": [{"license": {"name": "the licenses of its packages"}}],
        },
        *(debian_component(each, system) for each in packages),
        sbom.application(project, __version__),
        *(sbom.component(each, terms[each.name], None) for each in locked),
    ]
    return sbom.bill(metadata, components, requires)


def debian_component(package: DebianPackage, system: Path) -> dict[str, Any]:
    """The component for a Debian package, whose copyright file is in `system`."""
    copyright_file = system / "usr" / "share" / "doc" / package.name / "copyright"
    return {
        "type": "library",
        "bom-ref": package.purl,
        "name": package.name,
        "version": package.version,
        "supplier": {"name": package.maintainer},
        "licenses": debian_licenses(package.source, copyright_file.read_text(encoding="utf-8")),
        "purl": package.purl,
        "hashes": [{"alg": "SHA-256", "content": package.digest}],
    }


def debian_licenses(source: str, text: str) -> list[dict[str, Any]]:
    """Read the licenses in a copyright file of Debian, under the names that Debian gives them, sorted.

    Raises ImageError if the file is not machine-readable and UNSTRUCTURED_LICENSES has no license for this source.
    """
    if COPYRIGHT_FORMAT.search(text) and (names := set(COPYRIGHT_LICENSE.findall(text))):
        return [{"license": {"name": name}} for name in sorted(names)]
    expression, words = UNSTRUCTURED_LICENSES.get(source, ("", ""))
    if not expression or words not in " ".join(text.split()):
        raise ImageError(
            f"Debian's copyright file of {source} names no known license. Read it, and add the license to"
            " UNSTRUCTURED_LICENSES."
        )
    return [{"expression": expression}]


def labels(root: Path, version: str, moment: datetime) -> dict[str, str]:
    """The labels of the image: what it is, and where it comes from."""
    values = {
        "title": sbom.PROJECT,
        "description": "Short-lived client certificates for Kubernetes clusters",
        "version": version,
        "created": moment.isoformat(),
        "licenses": "Apache-2.0",
    }
    if source := publication.read(root).urls.get("Source"):
        values["source"] = source
    if commit := revision(root, version):
        values["revision"] = commit
    return {f"org.opencontainers.image.{name}": value for name, value in values.items()}


def image_config(moment: datetime) -> dict[str, Any]:
    """What a container runtime needs to know about the image, and its labels."""
    return {
        "User": f"{USER}:{USER}",
        "Entrypoint": ["/usr/local/bin/clustercert"],
        "Cmd": ["serve"],
        "WorkingDir": f"/{STATE}",
        "ExposedPorts": {"8443/tcp": {}, "8444/tcp": {}},
        "Env": [
            "PATH=/usr/local/bin:/usr/bin",
            f"HOME=/{STATE}",
            "LANG=C.UTF-8",
            f"CLUSTERCERT_CONFIG=/{CONFIG}",
        ],
        "Labels": labels(ROOT, __version__, moment),
    }


def make_layers(folder: Path, wheels: Path, moment: datetime) -> Iterator[Layer]:
    """Create the layers, the one that changes least first: Debian, the packages of the lock file, the project.

    Args:
        wheels: the folder with the project's wheel.
    """
    architecture = run("dpkg", "--print-architecture").strip()
    system, libraries, project = (folder / name for name in ("system", "libraries", "project"))
    packages = make_system(folder, system, architecture)
    yield pack_layer(system, f"packages of Debian {DEBIAN_VERSION}", OWNERS)

    # The lock file lists all dependencies, except those that the image does not need.
    install(libraries, "--no-deps", "--require-hashes", "--requirements", ROOT / LOCK)
    compile_modules(system, libraries, SITE_PACKAGES)
    yield pack_layer(libraries, LOCK)

    # By name, since an installed path would be recorded.
    install(project, "--no-deps", "--no-index", "--find-links", wheels, f"{sbom.PROJECT}=={__version__}")
    compile_modules(system, project, SITE_PACKAGES)
    write(project / "usr" / "local" / "bin" / "clustercert", COMMAND)
    (project / "usr" / "local" / "bin" / "clustercert").chmod(0o755)
    write(project / CONFIG, SETTINGS)
    bom = image_sbom(packages, system, libraries / SITE_PACKAGES, moment)
    write(project / SBOM, json.dumps(bom, indent=2, sort_keys=True) + "\n")
    yield pack_layer(project, f"clustercert {__version__}")


def build(out: Path, wheels: Path, moment: datetime) -> Image:
    """Build the image with the project's wheel in `wheels`, and put archive and SBOM into `out`. Raises ImageError."""
    architecture = run("dpkg", "--print-architecture").strip()
    path = out / f"clustercert-{__version__}-{architecture}.oci.tar"
    with tempfile.TemporaryDirectory(prefix="clustercert-image-") as name:
        folder = Path(name)
        layers = list(make_layers(folder, wheels, moment))
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "project" / SBOM, path.with_name(path.name.replace(".oci.tar", ".cdx.json")))
    digest = write_archive(
        path,
        f"clustercert:{__version__}",
        layers,
        image_config(moment),
        architecture=architecture,
        created=moment.isoformat(),
    )
    return Image(path, digest, sum(len(each.blob) for each in layers), sum(each.unpacked for each in layers))


def build_from_source(out: Path) -> Image:
    """Build the wheel, and the image with it into `out`. Raises BuildError."""
    moment = source_moment(ROOT, __version__)
    with tempfile.TemporaryDirectory(prefix="clustercert-wheel-") as wheels:
        python_packages.build(ROOT, Path(wheels), moment)
        return build(out, Path(wheels), moment)


def main() -> None:
    """Build the image once, or twice to compare."""
    parser = argparse.ArgumentParser(description="Build the container image.")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder for the archive")
    parser.add_argument("--check", action="store_true", help="build twice, and compare the digests")
    options = parser.parse_args()
    try:
        image = build_from_source(options.out)
        print(f"{image.path}\ndigest: {image.digest}")
        print(
            f"size:   {image.compressed / 1e6:.1f} MB compressed, {image.unpacked / 1e6:.1f} MB unpacked",
            flush=True,
        )
        if options.check:
            with tempfile.TemporaryDirectory() as folder:
                again = build_from_source(Path(folder))
            print(f"again:  {again.digest}")
            if again.digest != image.digest:
                raise ImageError("Two builds of the same source have different digests.")
    except BuildError as error:
        sys.exit(f"make image: {error}")


if __name__ == "__main__":
    main()
