"""A short run of the loop that `python tests/crash/kill_loop.py` makes long."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from kill_loop import run


def test_random_kills_lose_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The feeder's own loop is asyncio's; what is killed serves on uvloop.
    result = asyncio.run(run(tmp_path, kills=6, events=4000, seed=int.from_bytes(tmp_path.name.encode()) % 1000, longest=1.0))
    with capsys.disabled():
        print(f"\n{result}")
    assert not result.lost
    assert (result.left, result.twice_dead, result.crashed) == (0, 0, 0)
    assert result.accepted >= 4000
