"""Every async test runs on asyncio's own loop and on uvloop."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from pathlib import Path

import pytest

try:
    import uvloop
except ImportError:  # no wheel for this platform
    uvloop = None

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"


def pytest_collection_finish() -> None:
    """What thousands of tests are made of stays: otherwise each full collection, which benchmarks ask for often, takes 0.3 s."""
    gc.collect()
    gc.freeze()


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if uvloop is not None:
        factories["uvloop"] = uvloop.new_event_loop
    return factories


@pytest.fixture
def cases() -> Path:
    """Conformance data from public projects, beside the repository."""
    if not CASES.is_dir():
        pytest.skip(f"no conformance data: {CASES} is not there")
    return CASES
