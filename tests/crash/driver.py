"""A router that a test makes die: `python driver.py FOLDER COUNT` accepts COUNT events, lets all end, and redrives what failed.

accepted.txt has the id of each event whose source was told; handled.txt the id of each that a handler finished.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from eventrouter import App, Event, fixed, on
from eventrouter.journal.protocol import LetterQuery
from support import local, make_app

TOML = """
[journal]
history = "1d"
[app]
drain = 0
"""


def append(name: str) -> int:
    return os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


async def main(folder: Path, count: int) -> None:
    os.chdir(folder)
    accepted, handled = append("accepted.txt"), append("handled.txt")
    redriving = False

    @on(local("good"))
    async def good(event: Event) -> None:
        os.write(handled, f"{event.id}\n".encode())

    @on(local("flaky"), retries=3, backoff=fixed(0))
    async def flaky(event: Event) -> None:
        if os.urandom(1)[0] < 128 and not redriving:
            raise ValueError("this time")
        os.write(handled, f"{event.id}\n".encode())

    @on(local("bad"), retries=1, backoff=fixed(0))
    async def bad(event: Event) -> None:
        if not redriving:
            raise ValueError("always")
        os.write(handled, f"{event.id}\n".encode())

    async def busy(app: App) -> bool:
        depth = await app.journal.depth()
        return any(counts["waiting"] or counts["running"] for counts in depth.values())

    async with make_app(folder, good, flaky, bad, toml=TOML) as app:
        for start in range(0, count, 10):
            events = [Event("local", "local.put", subject, b"0") for subject in ("good", "flaky", "bad", "good", "good") * 2]
            receipt = app.engine.deliver(events[: count - start])
            await receipt
            app.sources["local"].router.crash_point("ack.before")
            os.write(accepted, "".join(f"{event.id}\n" for event in events).encode())
            app.sources["local"].router.crash_point("ack.after")
        while await busy(app):
            await asyncio.sleep(0.002)
        redriving = True
        await app.engine.by_hand.letters(LetterQuery(), app.engine.by_hand.redrive)
        while await busy(app):
            await asyncio.sleep(0.002)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
