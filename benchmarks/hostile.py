"""How long another function's calls take while one does harm: `python -m benchmarks.hostile`.

For each kind of harm the 50th and 99th percentile, in ms, before and meanwhile, of an isolated function that returns what it gets.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from benchmarks.apps import on_loop
from benchmarks.harness import percentile
from benchmarks.measure import ROOT
from eventrouter import App, Event
from eventrouter.config import load_config
from eventrouter.model import Outcome, Succeeded, TimedOut
from eventrouter.plugins import Plugins

HARM: dict[str, Any] = {
    "spins_in_c": None, "ignores_sigterm": None, "forks": None, "allocates": 200, "has_a_child_allocate": None, "opens": None,
    "fills_boxed": None,
}  # fmt: skip
AT_LEAST = 2.0  # seconds of each; what ends sooner is done again


async def _call(app: App, name: str, payload: Any) -> Outcome:
    return await app.run_now(name, Event("invoke", "lambda.invoke", name, json.dumps(payload).encode()), {})


async def _timed(app: App, until: asyncio.Task[Any]) -> list[float]:
    taken = []
    while not until.done():
        began = perf_counter()
        assert isinstance(await _call(app, "peaceful", 1), Succeeded)
        taken.append((perf_counter() - began) * 1000)
        await asyncio.sleep(0.002)
    return taken


async def _harm(app: App, name: str) -> str:
    began, said = perf_counter(), ""
    while perf_counter() - began < AT_LEAST:
        outcome = await _call(app, name, HARM[name])
        said = (
            "Sandbox.Timedout"
            if isinstance(outcome, TimedOut)
            else str(getattr(outcome, "error_type", None) or getattr(outcome, "result", ""))
        )
    return said


async def _main() -> None:
    row = "{:<24}{:>10}{:>10}{:>12}{:>12}  {}".format
    print(row("", "p50", "p99", "meanwhile", "p99", "what came of it"))
    with TemporaryDirectory() as folder:
        file = Path(folder) / "eventrouter.toml"
        file.write_text("[app]\nprocesses = 8\n[functions.peaceful]\ntimeout = 60\nmin_environments = 1\n")
        plugins = Plugins([])
        app = App("tests/hostile.py", config=load_config(plugins.by_name, file=file), plugins=plugins, folder=ROOT)
        async with app:
            for name in HARM:
                before = await _timed(app, asyncio.create_task(asyncio.sleep(AT_LEAST)))
                harm = asyncio.create_task(_harm(app, name))
                meanwhile = await _timed(app, harm)
                figures = [f"{percentile(values, percent):.2f}" for values in (before, meanwhile) for percent in (50, 99)]
                print(row(name, *figures, harm.result()), flush=True)


if __name__ == "__main__":
    on_loop(_main)
