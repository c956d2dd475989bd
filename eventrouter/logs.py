"""What an invocation prints, line by line in the router's log, between START, END and REPORT as AWS Lambda writes them."""

from __future__ import annotations

import io
import logging
import resource
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Protocol

logger = logging.getLogger("eventrouter.invocations")

STEP: Final = 100  # milliseconds that a duration is rounded up to, where no setting says otherwise
_KEPT: Final = 10_000  # lines
_LONGEST: Final = 64 * 1024  # characters of a line; what goes on without an end is cut
MAXRSS: Final = 1024 * 1024 if sys.platform == "darwin" else 1024  # of ru_maxrss: a megabyte


class Tail(Protocol):
    """Somebody who waits for what an invocation prints."""

    def write(self, text: str) -> object: ...


class Log:
    """One invocation's. It is in the router's log if `logged` and that takes it; `tail` has it in any case.

    memory: of its environment, MB. echo: what isn't in the log is printed, as it would be without a tail. step: see `STEP`.
    init: seconds that a cold start took. peak: memory at most, MB; 0: it is the router's own. report: the REPORT line, at the end.
    """

    __slots__ = (
        "_began", "_echo", "_monotonic", "_rest", "_step", "_tail", "_told", "function", "id", "init", "logged", "memory", "peak",
        "report",
    )  # fmt: skip

    def __init__(
        self,
        function: str,
        id: str,
        memory: int,
        monotonic: Callable[[], float],
        *,
        logged: bool,
        tail: Tail | None = None,
        echo: bool = True,
        step: int = STEP,
    ) -> None:
        self.function = function
        self.id = id
        self.memory = memory
        self.logged = logged
        self.init: float | None = None
        self.peak = 0
        self.report = ""
        self._step = step
        self._tail = tail
        self._echo = echo
        self._told = logged and wanted()
        self._monotonic = monotonic
        self._began = monotonic()
        self._rest = ""

    def begin(self) -> None:
        """The handler starts now."""
        self._began = self._monotonic()
        self._mark(f"START RequestId: {self.id} Version: $LATEST")

    def write(self, text: str) -> None:
        if self._tail is not None:
            self._tail.write(text)
        if self._told:
            *lines, self._rest = (self._rest + text).split("\n")
            for line in lines:
                self._say(line)
            if len(self._rest) > _LONGEST:
                self._say(self._rest)
                self._rest = ""
        elif self._echo:
            real(sys.stdout).write(text)

    def end(self) -> None:
        """The handler has ended, one way or another."""
        if self.report:
            return
        milliseconds = (self._monotonic() - self._began) * 1000
        if self._rest:
            self._say(self._rest)
        self._mark(f"END RequestId: {self.id}")
        billed = -(-max(milliseconds, 1) // self._step) * self._step
        peak = self.peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // MAXRSS
        init = f"Init Duration: {self.init * 1000:.2f} ms\t" if self.init is not None else ""
        self.report = (
            f"REPORT RequestId: {self.id}\tDuration: {milliseconds:.2f} ms\tBilled Duration: {billed:.0f} ms\t"
            f"Memory Size: {self.memory} MB\tMax Memory Used: {peak} MB\t{init}"
        )
        if self._told:
            self._say(self.report)

    def _mark(self, line: str) -> None:
        if self.logged and self._tail is not None:
            self._tail.write(f"{line}\n")
        if self._told:
            self._say(line)

    def _say(self, line: str) -> None:
        token = current.set(None)  # else a handler of logging that prints would come here again
        try:
            logger.info("%s", line, extra={"action": "invocation.log", "function": self.function, "invocation": self.id})
        finally:
            current.reset(token)


current: ContextVar[Log | None] = ContextVar(
    "eventrouter_log", default=None
)  # of the invocation that prints what is printed in this context


def wanted() -> bool:
    """Whether the router's log takes what invocations print."""
    return logger.isEnabledFor(logging.INFO)


def label(record: logging.LogRecord) -> bool:
    """A filter that lets all through and says whose a line is: in `function`, `invocation`, and for people in `label`."""
    fields = vars(record)
    log = current.get()
    named = record.name == logger.name
    if log is not None and not record.name.startswith("eventrouter"):  # the handler's own logging
        named = True
        fields.update(function=log.function, invocation=log.id)
    fields["label"] = f"{fields['function']} {fields['invocation']}: " if named else ""
    return True


class Recent(logging.Handler):
    """The last lines of all invocations, numbered, for those that look on. heard: called when there is another."""

    def __init__(self, heard: Callable[[], object]) -> None:
        super().__init__()
        self._heard = heard
        self._lines: deque[tuple[str, str, str]] = deque(maxlen=_KEPT)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append((vars(record)["function"], vars(record)["invocation"], record.getMessage()))
        self.count += 1
        self._heard()

    def after(self, number: int) -> list[tuple[str, str, str]]:
        """As far as they are kept."""
        kept = list(self._lines)
        return kept[max(0, len(kept) - (self.count - number)) :]


class _Output(io.TextIOBase):
    """Standard output or error, each invocation's its own."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def write(self, text: str) -> int:
        log = current.get()
        if log is None:
            self.real.write(text)
        else:
            log.write(text)
        return len(text)

    def flush(self) -> None:
        self.real.flush()

    def fileno(self) -> int:
        return int(self.real.fileno())

    def isatty(self) -> bool:
        return bool(self.real.isatty())


def real(stream: Any) -> Any:
    """Where it goes that no invocation prints."""
    return stream.real if isinstance(stream, _Output) else stream


@contextmanager
def captured() -> Iterator[None]:
    """What is printed meanwhile in an invocation's context is its log's."""
    outputs = {name: _Output(getattr(sys, name)) for name in ("stdout", "stderr") if not isinstance(getattr(sys, name), _Output)}
    for name, output in outputs.items():
        setattr(sys, name, output)
    try:
        yield
    finally:
        for name, output in outputs.items():
            if getattr(sys, name) is output:
                setattr(sys, name, output.real)
