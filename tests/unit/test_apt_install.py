"""What scripts/apt-install says and does around apt-get, on a system whose /usr/sbin is empty."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
POLICY = Path("/usr/sbin/policy-rc.d")
# Reports what Debian's packages are told when they want to start a service.
APT_GET = """\
#!/bin/sh
case "$*" in *" install "*) ;; *) exit 0 ;; esac
code=0
/usr/sbin/policy-rc.d haproxy start || code=$?
echo "$code ${*##* --no-install-recommends }" >>"$REPORT"
[ -z "${KILL:-}" ] || kill -KILL "$PPID"
exit "${APT_STATUS:-0}"
"""

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


def install(folder: Path, script: str, **variables: str) -> tuple[int, str, str, bool]:
    """Run a shell script as root with an empty /usr/sbin, in which `$INSTALL` is scripts/apt-install.

    Returns its status, what it said, what apt-get reported, and whether a policy is left.
    """
    programs, report = folder / "programs", folder / "report"
    programs.mkdir()
    (programs / "apt-get").write_text(APT_GET)
    (programs / "apt-get").chmod(0o755)
    report.touch()
    given = {"PATH": f"{programs}:/usr/bin:/bin", "REPORT": str(report), **variables}
    given["INSTALL"] = str(ROOT / "scripts" / "apt-install")
    root = ("--unshare-user", "--uid", "0", "--gid", "0", "--dev-bind", "/", "/", "--tmpfs", "/usr/sbin")
    left = f"test -e {POLICY} && touch {folder}/left; exit $status"
    command = ("bwrap", *root, "sh", "-c", f"{script}\nstatus=$?; {left}")
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr, report.read_text(), (folder / "left").exists()


def test_it_names_the_packages_and_forbids_them_to_start_services(tmp_path: Path) -> None:
    assert install(tmp_path, "$INSTALL haproxy etcd-server") == (
        0,
        "installing Debian packages with apt-get: haproxy etcd-server (their services are not started)\n",
        "101 haproxy etcd-server\n",
        False,
    )


def test_services_may_start_again_after_a_failure(tmp_path: Path) -> None:
    status, _, report, is_left = install(tmp_path, "$INSTALL haproxy", APT_STATUS="100")
    assert (status, report, is_left) == (1, "101 haproxy\n", False)


def test_what_a_killed_run_left_behind_is_deleted(tmp_path: Path) -> None:
    status, _, report, is_left = install(
        tmp_path, f"KILL=1 $INSTALL haproxy; test -x {POLICY} && $INSTALL etcd-server"
    )
    assert (status, report, is_left) == (0, "101 haproxy\n101 etcd-server\n", False)


def test_a_policy_of_the_machine_stays(tmp_path: Path) -> None:
    own = f"printf '#!/bin/sh\\nexit 104\\n' >{POLICY}; chmod 755 {POLICY}"
    status, said, report, is_left = install(tmp_path, f"{own}; $INSTALL haproxy")
    assert (status, report, is_left) == (0, "104 haproxy\n", True)
    assert "(/usr/sbin/policy-rc.d decides whether their services start)" in said
