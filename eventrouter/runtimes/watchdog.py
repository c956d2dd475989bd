"""Names, and where it can ends, handlers that block the event loop.

A cancellation reaches a handler only where it awaits. One that computes or sleeps within one step stops everything else, the
sweeper of the deadlines too; only another thread can see it, and only a signal can end it.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from types import FrameType
from typing import Any, Final

from eventrouter.runtimes.deadline import GRACE, STEPPERS, Overrun, Slot

log = logging.getLogger("eventrouter")

_EVERY: Final = 0.1  # seconds between two looks
_LONG: Final = 0.5  # seconds of one step that are worth a word; the next word at twice the time, and so on
_SIGNAL: Final = signal.SIGURG  # ignored where nobody listens, and used by hardly anything
_ROUTER: Final = f"{Path(__file__).parents[1]}/"
_ASYNCIO: Final = f"{Path(asyncio.__file__).parent}/"


class Watchdog:
    """Looks after the loop of the thread that starts it. monotonic: the clock that deadlines are given in, seconds.

    On the main thread it ends a step that is past its deadline by raising `Overrun` in the handler's own frames, and again
    each second if that is swallowed; code in C ends when it heeds signals. On other threads it can but name.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop_thread = 0
        self._strikes = False
        self._before: Any = None  # the signal's handler before ours
        self._step: tuple[Slot, int] | None = None  # what ran at the last look: whose, and which of its steps
        self._since = self._word = inf  # when that was first seen; after how many seconds it is next told
        self._target: tuple[Slot, int] | None = None  # the step that the signal on its way is meant for

    def start(self) -> None:
        """Once is enough; more does no harm."""
        if self._thread is not None:
            return
        self._loop_thread = threading.get_ident()
        self._strikes = threading.current_thread() is threading.main_thread()  # Python runs signals' handlers there alone
        if self._strikes:
            self._before = signal.getsignal(_SIGNAL)
            signal.signal(_SIGNAL, self._struck)
        self._thread = threading.Thread(target=self._watch, name="eventrouter-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        if self._strikes and signal.getsignal(_SIGNAL) == self._struck:  # else it's another's by now
            signal.signal(_SIGNAL, self._before or signal.SIG_DFL)

    # In its own thread

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY):
            try:
                self._look(sys._current_frames().get(self._loop_thread))
            except Exception:  # the frames are another thread's, which goes on meanwhile
                log.debug("a look at the loop's thread failed", exc_info=True)

    def _look(self, frame: FrameType | None) -> None:
        slots = list(_slots(frame))
        step = (slots[0], slots[0].steps) if slots else None
        now = self._monotonic()
        if step is None or step != self._step:
            self._step, self._since, self._word = step, now, _LONG
            return
        slot, lasted = slots[0], now - self._since
        late = any(slot.deadline <= now for slot in slots)
        if lasted >= self._word or (late and self._word == _LONG):
            self._word = max(_LONG, lasted) * 2
            self._tell(slot.function, lasted, late or slot.overran, frame)
        if late and self._strikes:
            self._target = step
            signal.pthread_kill(self._loop_thread, _SIGNAL)

    def _tell(self, function: str, lasted: float, late: bool, frame: FrameType | None) -> None:
        log.log(
            logging.ERROR if late else logging.WARNING,
            "%s has blocked the event loop for %.1f s%s; nothing else runs meanwhile. Await what it waits for, or make it a `def`\n%s",
            function, lasted, " and is past its time-out" if late else "", _stack(frame),
            extra={"action": "loop.blocked", "function": function},
        )  # fmt: skip

    # In the loop's thread

    def _struck(self, number: int, frame: FrameType | None) -> None:
        """The signal's handler: raises in the interrupted frame, if that is the handler's own and the step is still the one."""
        target, self._target = self._target, None
        if target is None:
            if callable(self._before):
                self._before(number, frame)
            return
        slots = list(_slots(frame))
        if slots and (slots[0], slots[0].steps) == target and _is_theirs(frame):
            now = self._monotonic()
            for slot in slots:  # a handler that runs another's within its own step is blocked by it
                if slot.deadline <= now:
                    slot.overran = True
                    slot.deadline = now + GRACE
            raise Overrun


def _slots(frame: FrameType | None) -> Iterator[Slot]:
    """Whose steps the frame is part of, innermost first."""
    last, inside = None, False
    while frame is not None:
        if frame.f_code in STEPPERS:
            slot = frame.f_locals.get("slot")
            if inside and slot is not last and isinstance(slot, Slot):
                last = slot
                yield slot
        inside, frame = True, frame.f_back


def _inside(frame: FrameType | None) -> list[FrameType]:
    """The frames of the innermost step, innermost first, without those by which the router calls the handler."""
    frames = []
    while frame is not None and frame.f_code not in STEPPERS:
        frames.append(frame)
        frame = frame.f_back
    while frames and frames[-1].f_code.co_filename.startswith(_ROUTER):
        frames.pop()
    return frames


def _is_theirs(frame: FrameType | None) -> bool:
    """Whether an exception may be raised there: what the handler has called of the router and asyncio must not break off halfway."""
    frames = [frame.f_code.co_filename for frame in _inside(frame)]
    return bool(frames) and not frames[0].startswith(_ASYNCIO) and not any(name.startswith(_ROUTER) for name in frames)


def _stack(frame: FrameType | None) -> str:
    frames = ((frame, frame.f_lineno) for frame in reversed(_inside(frame)) if not frame.f_code.co_filename.startswith(_ROUTER))
    return "".join(traceback.StackSummary.extract(frames).format()).rstrip()
