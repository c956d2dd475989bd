"""What metering and auditing every invocation cost: durable accept, run, complete with them, against the same without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from benchmarks.apps import BenchTrigger, Load, Reading, make_app, on_loop
from benchmarks.harness import Result, compare
from benchmarks.measure import Measured, Watch, fresh
from benchmarks.servers import folder
from eventrouter import on

COUNT: Final = 40_960
NOTHING: Final = "[metering]\nenabled = false\n"
METERED: Final = ""
AUDITED: Final = "[audit]\ninvocations = true\n"


def run_with(count: int, toml: str) -> Measured:
    async def main() -> Measured:
        load = Load(count)

        @on(BenchTrigger())
        async def handler(reading: Reading, device: str) -> None:
            load.done()

        with folder() as place:
            place.joinpath("eventrouter.toml").write_text(toml)
            async with make_app(place, handler) as app:
                with Watch() as watch:
                    await load.run(app.engine.deliver)
                    await app.journal.flush()
        return watch.rate(count)

    return on_loop(main)


def run(rounds: int) -> Iterator[Result]:
    bare = fresh(f"{__name__}:run_with", count=COUNT, toml=NOTHING)
    for name, toml, against in (("metering", METERED, "without it"), ("audit", AUDITED, "without it and without metering")):
        yield compare(
            name, "events/s", fresh(f"{__name__}:run_with", count=COUNT, toml=toml), bare, rounds=rounds, against=f"the same {against}"
        )  # fmt: skip
