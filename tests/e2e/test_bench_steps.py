from pathlib import Path

import pytest

from bench import steps, world


@pytest.mark.slow
def test_every_step_of_a_request_is_still_where_the_benchmark_looks_for_it(tmp_path: Path) -> None:
    store = world.prepare(tmp_path / "store")
    with world.served(store, workers=1) as served:
        who = served.who
    measured = steps.measure(store.config, who.project_id, who.cluster_id, who.token, requests=40)
    assert all(used > 0 for used in measured.steps.values()), measured.steps
    assert measured.record > 0
    assert sum(measured.steps.values()) < 2 * measured.application
