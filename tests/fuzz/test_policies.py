"""A short run of what `python tests/fuzz/policies.py` makes long."""

from __future__ import annotations

from pathlib import Path

from policies import run


def test_made_up_policies_are_decided_as_the_plain_evaluator_does(tmp_path: Path) -> None:
    result = run(int.from_bytes(tmp_path.name.encode()) % 1000, cases=5000)
    assert min(result.decisions.values()) > 100, "all three decisions came up"
    assert result.refused > 1000
