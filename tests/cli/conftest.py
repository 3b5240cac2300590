from pathlib import Path

import pytest

from operating import Operator, new_operator


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return new_operator(tmp_path)
