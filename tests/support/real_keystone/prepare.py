"""Makes the database and the keys of a Keystone, which each test run copies. Argument: FOLDER.

Run it with the interpreter of Keystone's environment. A folder that this program has made is left alone.
"""

import fcntl
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIGURATION = """\
[database]
connection = sqlite:///{folder}/keystone.db
[fernet_tokens]
key_repository = {folder}/fernet
[credential]
key_repository = {folder}/credential
"""


def prepare(folder: Path) -> None:
    """Create the schema, the keys, and the administrator `admin` with the password `admin`."""
    configuration = folder / "keystone.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder))
    user = pwd.getpwuid(folder.stat().st_uid).pw_name
    own_files = ("--keystone-user", user, "--keystone-group", user)
    for name in ("fernet", "credential"):
        (folder / name).mkdir(mode=0o700)
    for command in (
        ("db_sync",),
        ("fernet_setup", *own_files),
        ("credential_setup", *own_files),
        ("bootstrap", "--bootstrap-password", "admin"),
    ):
        done = subprocess.run(
            [Path(sys.executable).parent / "keystone-manage", "--config-file", configuration, *command],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            sys.exit(f"keystone-manage {command[0]} failed: {done.stdout}{done.stderr}")
    configuration.unlink()


def main(folder: Path) -> None:
    """Prepare it beside its place: a folder with a copy of this program is complete and up to date."""
    program = Path(__file__)
    copy = folder / program.name
    # Somebody else may prepare it now.
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if copy.exists() and copy.read_bytes() == program.read_bytes():
            return
        with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
            unfinished = Path(beside, folder.name)
            unfinished.mkdir()
            prepare(unfinished)
            shutil.copy(program, unfinished)
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
