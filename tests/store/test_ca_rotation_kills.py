"""A rotation goes on after any kill, and never lets a CA sign that was not proved. Operators act at any time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clustercert.clusters.discarded_keys import ADDING
from clustercert.model import Cluster
from clustercert.model.errors import Conflict, NotFound
from support.rotation_scene import BY, Killed, RotationScene
from support.stores import Store, patient

KILL = st.one_of(st.none(), st.integers(1, 6))
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("step"), KILL),
        st.tuples(st.just("step"), KILL),
        st.tuples(st.just("trust"), st.integers(0, 1)),
        st.tuples(st.just("trust all"), st.just(0)),
        st.tuples(st.just("silence"), st.integers(0, 1)),
        st.tuples(st.just("speak"), st.integers(0, 1)),
        st.tuples(st.just("start"), KILL),
        st.tuples(st.just("abort"), KILL),
        st.tuples(st.just("complete"), KILL),
        st.tuples(st.just("delete keys"), KILL),
    ),
    min_size=4,
    max_size=30,
)
Action = tuple[str, int | None]


# Each example has a cluster of its own in the test's one database.
@pytest.mark.long_on_server
@pytest.mark.full
@settings(suppress_health_check=list(HealthCheck))
@given(actions=ACTIONS)
def test_a_rotation_goes_on_after_any_kill(store: Store, actions: Sequence[Action]) -> None:
    asyncio.run(_lived_through(store, actions))


async def _lived_through(store: Store, actions: Sequence[Action]) -> None:
    scene = RotationScene(store, patient(store.url))
    try:
        if not store.rows("SELECT id FROM project"):
            scene.add_project()
        cluster = await scene.register()
        signing = scene.active(cluster)
        for action, argument in actions:
            await _act(scene, cluster, action, argument)
            now = scene.active(cluster)
            if now != signing:
                assert {(each, now) for each in cluster.api_servers} <= scene.servers.accepted
            signing = now
        await _finish(scene, cluster)
    finally:
        await scene.database.close()


async def _act(scene: RotationScene, cluster: Cluster, action: str, argument: int | None) -> None:
    """Do what an operator, the leader or an API server does. The process may die in it."""
    address, rotations = cluster.api_servers[(argument or 0) % 2], scene.rotations
    current = await scene.current(cluster)

    async def silence(*, silent: bool) -> None:
        (scene.servers.silent.add if silent else scene.servers.silent.discard)(address)

    actions: dict[str, Callable[[], Awaitable[object]]] = {
        "step": lambda: scene.step(cluster, argument),
        "trust": lambda: scene.trust_bundle(cluster, address),
        "trust all": lambda: scene.trust_bundle(cluster),
        "silence": lambda: silence(silent=True),
        "speak": lambda: silence(silent=False),
        "start": lambda: scene.start(cluster),
        "abort": lambda: rotations.abort(current, actor=BY),
        "complete": lambda: rotations.complete(current, holders=None, deny_old=None, actor=BY),
        "delete keys": scene.discarded.delete_all,
    }
    scene.process.left = argument
    try:
        await actions[action]()
    except (Killed, Conflict, NotFound):
        pass
    finally:
        scene.process.left = None


async def _finish(scene: RotationScene, cluster: Cluster) -> None:
    """Whatever happened, a rotation can be brought to its end, and leaves one CA with its key."""
    scene.servers.silent.clear()
    if not scene.store.rows("SELECT state FROM ca_rotation WHERE cluster_id = ?", cluster.id):
        await scene.start(cluster)
    for _ in range(8):
        status = await scene.status(cluster)
        if not status.rotation.is_running:
            break
        if status.rotation.state == "draining":
            await scene.rotations.complete(
                await scene.current(cluster), holders=None, deny_old=None, actor=BY
            )
        await scene.trust_bundle(cluster)
        await scene.step(cluster)
    assert await scene.state(cluster) in ("complete", "aborted")
    scene.now += ADDING + timedelta(seconds=1)
    await scene.discarded.delete_all()
    query = "SELECT id FROM client_ca WHERE cluster_id = ? AND state <> 'retired'"
    assert scene.store.rows(query, cluster.id) == [(scene.active(cluster),)]
    sealed = "SELECT id FROM client_ca WHERE cluster_id = ? AND state = 'retired' AND sealed_key IS NOT NULL"
    assert scene.store.rows(sealed, cluster.id) == []
    assert scene.store.rows("SELECT id FROM discarded_ca WHERE cluster_id = ?", cluster.id) == []
    for signer in scene.signers.values():
        # A process that is killed while the signer creates a key may leave this key.
        assert signer.keys & (signer.created | {cluster.client_ca.id}) <= {scene.active(cluster)}
