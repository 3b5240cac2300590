from pathlib import Path

import pytest

from support import programs
from support.demo_process import uncovered

# Two hours have 22 times as many pauses, and may cost a megabyte.
MAX_BYTES = 48 * 1024


@pytest.mark.full
def test_an_idle_worker_does_not_grow(tmp_path: Path) -> None:
    # Coverage keeps a tracer for each thread that was ever started.
    done = programs.run("idle_service", tmp_path, env=uncovered())
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < MAX_BYTES
