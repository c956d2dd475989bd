import asyncio

from eventrouter.clock import ManualClock, SystemClock


def test_due_timers_run_in_order_at_their_own_moment() -> None:
    clock = ManualClock(100)
    ran: list[tuple[str, float]] = []
    clock.call_later(5, lambda: ran.append(("later", clock.time())))
    clock.call_later(1, lambda: ran.append(("first", clock.time())))
    clock.call_later(2, lambda: ran.append(("cancelled", clock.time()))).cancel()
    clock.call_later(1, lambda: clock.call_later(1, lambda: ran.append(("made by a timer", clock.time()))))
    clock.advance(4)
    assert ran == [("first", 101), ("made by a timer", 102)]
    clock.advance(1)
    assert ran[-1] == ("later", 105)


async def test_sleep_ends_when_the_clock_is_moved() -> None:
    clock = ManualClock()
    sleeper = asyncio.create_task(clock.sleep(3600))
    await asyncio.sleep(0)
    clock.advance(3599)
    await asyncio.sleep(0)
    assert not sleeper.done()
    clock.advance(1)
    await sleeper


async def test_the_system_clock_runs_callbacks() -> None:
    clock = SystemClock()
    ran = asyncio.Event()
    clock.call_later(-5, ran.set)
    await ran.wait()
    before = clock.monotonic()
    await clock.sleep(0.001)
    assert clock.monotonic() > before
