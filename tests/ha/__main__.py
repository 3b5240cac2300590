"""`make ha`: causes faults under load, prints what clients noticed, and ends with 1 if anything was lost.

Where the machine has network namespaces, the whole run takes place in one of its own.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ha import haproxy, network, nodes, programs, report, site
from ha.faults import FAULTS
from ha.load import KINDS, Load
from ha.nodes import Nodes
from ha.report import Outcome
from support.wait import eventually

# Twenty in total. The order is mixed, so that each fault meets nodes that other faults have left.
WITH_HOSTS = (
    "kill-node",
    "switchover",
    "kill-postgres",
    "stop-standby",
    "suspend-node",
    "cut-network",
    "lose-etcd",
    "suspend-postgres",
    "kill-node",
    "switchover",
    "lose-etcd-no-failsafe",
    "kill-postgres",
    "cut-network",
    "stop-standby",
)
WITH_HAPROXY = ("kill-node", "switchover", "suspend-node", "cut-network", "kill-patroni", "stop-standby")
HOSTS, HAPROXY = "list of hosts", "HAProxy"
# Between faults.
REST_SECONDS = 12.0


def cause_faults(
    where: Nodes, load: Load, names: Sequence[str], through: str, rest_seconds: float = REST_SECONDS
) -> list[Outcome]:
    """Cause these faults under load, one after another. Prints each one's figures."""
    outcomes = []
    unable = None if network.is_isolated() else network.cannot_isolate() or "not in a network of its own"
    with load.running():
        for name in names:
            fault = FAULTS[name]
            if fault.needs_isolation and unable:
                print(f"{fault.name}: skipped: {unable}", flush=True)
                continue
            time.sleep(rest_seconds / 2)
            # Two faults in a row are another fault: some seconds after a restart of the primary, Patroni may find
            # that the synchronous standby is not connected yet, and then no node may take over.
            where.wait_until_settled()
            start = time.monotonic()
            fault.run(where)
            settled = time.monotonic()
            _wait_until_served(load, settled)
            time.sleep(rest_seconds / 2)
            times = (start, settled, time.monotonic())
            elsewhere = where.connections_elsewhere()
            outcomes.append(
                report.outcome(fault.name, through, load.answers, times, elsewhere, len(load.urls))
            )
            print(outcomes[-1], flush=True)
    return outcomes


def _wait_until_served(load: Load, since: float) -> None:
    """Wait until each service has answered each kind of request again, without a restart."""
    needed = {(kind, service) for kind in KINDS for service in range(len(load.urls))}
    eventually(
        lambda: (
            needed
            <= {
                (each.kind, each.service) for each in load.answers if each.succeeded and each.received > since
            }
        )
    )


def run(with_hosts: Sequence[str], with_haproxy: Sequence[str]) -> int:
    with (
        tempfile.TemporaryDirectory(prefix="clustercert-ha-") as folder,
        nodes.running() as where,
    ):
        made = site.new(where, Path(folder))
        with made.served(where.url()) as load:
            outcomes = cause_faults(where, load, with_hosts, HOSTS)
            findings = made.check(load)
        if with_haproxy and programs.find("haproxy") is None:
            print("haproxy: skipped: not installed")
        elif with_haproxy:
            with haproxy.running(where) as url, made.served(url, load):
                outcomes += cause_faults(where, load, with_haproxy, HAPROXY)
                findings = made.check(load)
    print(f"\n{report.table(outcomes)}\n\n{findings}")
    elsewhere = sum(each.elsewhere for each in outcomes)
    print(f"connections to standbys: {elsewhere}")
    return 1 if findings.faults or elsewhere else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="make ha", description="Cause faults of the database under load.")
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"of {', '.join(FAULTS)}; all by default")
    named = parser.parse_args().faults
    if unknown := set(named) - set(FAULTS):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    if reason := programs.missing():
        print(f"make ha: skipped: {reason}")
        return 0
    if not network.is_isolated() and network.cannot_isolate() is None:
        environment = os.environ | {network.ISOLATED: "1"}
        command = ["unshare", "--net", sys.executable, "-m", "ha", *named]
        os.execvpe(command[0], command, environment)  # noqa: S606 - the same program in another network
    # End everything on SIGTERM too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return run(named, ()) if named else run(WITH_HOSTS, WITH_HAPROXY)


if __name__ == "__main__":
    sys.exit(main())
