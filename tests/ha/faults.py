"""The faults, each as an operator would meet it, until the nodes have recovered from it."""

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ha import programs
from ha.nodes import COUNT, DYNAMIC, Node, Nodes
from support.wait import eventually

# Longer than Patroni's ttl, so that another node takes over meanwhile.
LONG_SECONDS = 45.0
# Longer than the leader keeps its role without etcd.
WITHOUT_ETCD_SECONDS = 30.0
_MAJORITY = 2


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that is caused, and then ended.

    Attributes:
        name: for the table.
        cause: causes the fault, and ends it. Returns when the nodes should recover by themselves.
        needs_isolation: whether it can be caused only if each node has a network of its own.
    """

    name: str
    cause: Callable[[Nodes], None]
    needs_isolation: bool = False

    def run(self, nodes: Nodes) -> None:
        """Cause the fault, and wait until all nodes work again."""
        try:
            self.cause(nodes)
            nodes.wait_until_settled()
        except AssertionError as error:
            error.add_note(nodes.last_log_lines())
            raise


def _wait_for_another_leader(nodes: Nodes, former: Node) -> None:
    """Wait until another node has taken over, with a synchronous standby."""
    eventually(lambda: nodes.is_settled(COUNT - 1) and nodes.leader() is not former)


def _kill_node(nodes: Nodes) -> None:
    leader = nodes.leader()
    leader.kill()
    _wait_for_another_leader(nodes, leader)
    leader.patroni.start()


def _kill_patroni(nodes: Nodes) -> None:
    """Kill Patroni alone. PostgreSQL goes on as a second primary: nothing else would stop it without a watchdog."""
    leader = nodes.leader()
    leader.patroni.kill()
    _wait_for_another_leader(nodes, leader)
    time.sleep(LONG_SECONDS / 4)
    leader.patroni.start()


def _kill_postgres(nodes: Nodes) -> None:
    nodes.leader().kill_postgres()


def _switch_over(nodes: Nodes) -> None:
    nodes.switch_over()


def _stop_standby(nodes: Nodes) -> None:
    standby = nodes.synchronous_standby()
    standby.stop()
    nodes.wait_until_settled(COUNT - 1)
    standby.patroni.start()


def _suspend_node(nodes: Nodes) -> None:
    """Suspended for so long that it wakes up as a second primary."""
    leader = nodes.leader()
    pids = leader.suspend()
    try:
        _wait_for_another_leader(nodes, leader)
        time.sleep(LONG_SECONDS / 4)
    finally:
        programs.send(signal.SIGCONT, pids)


def _suspend_postgres(nodes: Nodes) -> None:
    pids = nodes.leader().postgres_pids()
    programs.send(signal.SIGSTOP, pids)
    try:
        time.sleep(LONG_SECONDS)
    finally:
        programs.send(signal.SIGCONT, pids)


def _cut_network(nodes: Nodes) -> None:
    leader = nodes.leader()
    leader.host.cut()
    try:
        _wait_for_another_leader(nodes, leader)
        time.sleep(LONG_SECONDS / 4)
    finally:
        leader.host.join()


def _lose_etcd(nodes: Nodes) -> None:
    lost = nodes.members[:_MAJORITY]
    for node in lost:
        node.etcd.kill()
    time.sleep(WITHOUT_ETCD_SECONDS)
    for node in lost:
        node.etcd.start()


def _lose_etcd_without_failsafe(nodes: Nodes) -> None:
    nodes.configure({"failsafe_mode": False})
    # Each node reads the configuration in its loop.
    time.sleep(2 * float(str(DYNAMIC["loop_wait"])))
    _lose_etcd(nodes)
    nodes.wait_until_settled()
    nodes.configure({"failsafe_mode": True})


FAULTS: Mapping[str, Fault] = {
    "kill-node": Fault("primary and its Patroni killed", _kill_node),
    "kill-patroni": Fault("primary's Patroni killed, PostgreSQL goes on", _kill_patroni),
    "kill-postgres": Fault("PostgreSQL of the primary killed", _kill_postgres),
    "switchover": Fault("switchover", _switch_over),
    "stop-standby": Fault("synchronous standby stopped", _stop_standby),
    "suspend-node": Fault("primary's node suspended, then resumed", _suspend_node),
    "suspend-postgres": Fault("primary's PostgreSQL suspended for 45 s", _suspend_postgres),
    "cut-network": Fault("primary's network cut, then joined", _cut_network, needs_isolation=True),
    "lose-etcd": Fault("etcd without majority for 30 s, failsafe mode on", _lose_etcd),
    "lose-etcd-no-failsafe": Fault(
        "etcd without majority for 30 s, failsafe mode off", _lose_etcd_without_failsafe
    ),
}
