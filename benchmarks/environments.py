"""What environments of isolated functions cost: `python -m benchmarks.environments`.

Cold starts by turns without options, with memory=, with sandbox=True; then the memory of a hundred environments, shared pages counted once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from benchmarks.apps import PAYLOAD, on_loop
from benchmarks.harness import percentile
from benchmarks.measure import ROOT, tree
from eventrouter import App, Event, on
from eventrouter.config import load_config
from eventrouter.model import Succeeded
from eventrouter.plugins import Plugins

KINDS: dict[str, dict[str, Any]] = {
    "plain": {}, "memory=128": {"memory": 128}, "memory=1769": {"memory": 1769}, "sandbox": {"sandbox": True},
    "memory=1769, sandbox": {"memory": 1769, "sandbox": True},
}  # fmt: skip
EACH = 100


def _function(name: str, policy: dict[str, Any]) -> Callable[[bytes], bytes]:
    def echo(payload: bytes) -> bytes:
        return payload

    return on(isolation="process", name=name, timeout=30, **policy)(echo)


vars().update({f"f{kind}_{n}": _function(f"f{kind}_{n}", policy) for kind, policy in enumerate(KINDS.values()) for n in range(EACH)})


def pss(pids: list[int]) -> float:
    """MB, each shared page counted once among them."""
    text = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(int(each.partition("\nPss:")[2].split()[0]) for each in text) / 1024


async def _call(app: App, name: str) -> float:
    began = perf_counter()
    outcome = await app.run_now(name, Event("invoke", "lambda.invoke", name, PAYLOAD), {})
    assert isinstance(outcome, Succeeded), outcome
    return (perf_counter() - began) * 1000


async def _main() -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "eventrouter.toml"
        file.write_text(f"[app]\nprocesses = {EACH}\n[journal]\nurl = 'memory'\n")
        plugins = Plugins([])
        app = App("benchmarks.environments", config=load_config(plugins.by_name, file=file), plugins=plugins, folder=ROOT)
        async with app:
            taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
            warm: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for n in range(EACH // len(KINDS)):  # without one having to make room for another
                for number, kind in enumerate(KINDS):
                    taken[kind].append(await _call(app, f"f{number}_{n}"))
            for n in range(EACH // len(KINDS)):
                for number, kind in enumerate(KINDS):
                    warm[kind].append(await _call(app, f"f{number}_{n}"))
            for kind in KINDS:
                figures = [f"{percentile(values, p):.2f}" for values in (taken[kind], warm[kind]) for p in (50, 99)]
                print("{:<24} cold p50 {:>7} p99 {:>7} ms   first warm p50 {:>6} p99 {:>6} ms".format(kind, *figures), flush=True)
            pids = tree(os.getpid())[1:]
            print(f"{len(pids) - 1} environments and their template: {pss(pids):.0f} MB, shared pages counted once")
            await asyncio.sleep(0)


if __name__ == "__main__":
    on_loop(_main)
