"""The instruction counts of the hot path are near those that are stored; and what is told when they are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.guard import compare

ROOT = Path(__file__).parent.parent


def test_the_hot_path_runs_as_many_instructions_as_before() -> None:
    ran = subprocess.run([sys.executable, "-m", "benchmarks.guard"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    print(ran.stdout)  # pytest -rP shows it; a version without figures is told there


def test_more_and_less_are_told_with_the_command_that_keeps_them() -> None:
    stored = {"3.11": {"durable: bytecodes of ours": 100.0}}
    for count, near in ((110.0, True), (90.0, True), (110.5, False), (89.5, False)):
        (line,), good = compare({"durable: bytecodes of ours": count}, stored, "3.11")
        assert good == near
        assert line.startswith(f"durable: bytecodes of ours: {count:g} per event, 100 stored for Python 3.11")
        assert ("python3.11 -m benchmarks.guard --renew" in line) != near


def test_a_figure_that_came_or_went_is_told() -> None:
    lines, good = compare({"new: bytecodes in all": 5.0}, {"3.11": {"old: bytecodes in all": 6.0}}, "3.11")
    assert not good
    assert [line.partition(" per event")[0] for line in lines] == ["old: bytecodes in all: 0", "new: bytecodes in all: 5"]


def test_a_python_without_figures_is_told_and_does_not_fail() -> None:
    (line,), good = compare({"http: bytecodes in all": 5.0}, {}, "3.14")
    assert good
    assert "no figures are stored for Python 3.14" in line
