"""The short form of `make bench ARGS=revoking`."""

from pathlib import Path

import pytest

from bench import revoking

pytestmark = pytest.mark.long


def test_the_revocations_of_each_attack_are_counted(tmp_path: Path) -> None:
    measured = revoking.measure(tmp_path / "revoking", 1, 20, None)
    attacks = {(row["limited"], row["attack"]): row for row in measured["attacks"]}
    assert len(attacks) == len(measured["attacks"]) == 8
    for (_, attack), row in attacks.items():
        assert row["answers"] == ({} if attack == "none" else {"200": 20})
        assert row["stored"] == (20 if attack == "known users" else 0)
        assert row["failed"] == 0
    assert [row["revocations"] for row in measured["lists"]] == [40, 0]
