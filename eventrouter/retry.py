"""When to try again: back-off schedules, and the one pure decision about an attempt's outcome."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from eventrouter.errors import BadOption
from eventrouter.model import Dead, Decision, Done, Failed, Interrupted, Outcome, Release, RetryAt, Succeeded


class Backoff(msgspec.Struct, frozen=True):
    """Seconds before each retry: `first * factor**n`, at most `cap`; jitter spreads it by a tenth each way.

    steps: given, these instead, the last one before every later retry.
    """

    first: float
    factor: float
    cap: float
    jitter: bool = True
    steps: tuple[float, ...] = ()

    def delay(self, retry: int, spread: float) -> float:
        """retry: 1 for the first one. spread: 0 <= spread < 1, the invocation's place in the jitter."""
        if self.steps:
            return self.steps[min(retry, len(self.steps)) - 1]
        try:
            seconds = min(self.cap, self.first * self.factor ** (retry - 1))
        except OverflowError:
            seconds = self.cap
        return seconds * (0.9 + 0.2 * spread) if self.jitter else seconds

    def __str__(self) -> str:
        if self.steps:
            return f"delays({', '.join(f'{seconds:g}' for seconds in self.steps)})"
        if self.factor == 1:
            return f"fixed({self.first:g})"
        return f"exponential({self.first:g}, {self.factor:g}, {self.cap:g}{'' if self.jitter else ', jitter=False'})"


def exponential(first: float, factor: float, cap: float, jitter: bool = True) -> Backoff:
    """`exponential(2, 10, 300)` waits about 2 s, 20 s, 200 s, 300 s, 300 s ..."""
    for name, value, least in (("first", first, 0), ("factor", factor, 1), ("cap", cap, first)):
        if not least <= value < float("inf"):
            raise BadOption(f"exponential({first!r}, {factor!r}, {cap!r}): {name} must be {least:g} or more")
    return Backoff(first, factor, cap, jitter)


def fixed(seconds: float) -> Backoff:
    """The same wait before every retry."""
    if not 0 <= seconds < float("inf"):
        raise BadOption(f"fixed({seconds!r}): seconds must be 0 or more")
    return Backoff(seconds, 1, seconds, jitter=False)


def delays(*seconds: float) -> Backoff:
    """A wait for each retry, the last one for every later one: `delays(0, 1, 20)` waits 0 s, 1 s, 20 s, 20 s ..."""
    if not seconds or not all(0 <= each < float("inf") for each in seconds):
        raise BadOption(f"delays{seconds!r}: one or more times in seconds, 0 or more")
    return Backoff(seconds[0], 1, max(seconds), jitter=False, steps=seconds)


def lambda_() -> Backoff:
    """AWS Lambda's own: 60 s before the first retry, 120 s before every later one."""
    return Backoff(60, 2, 120, jitter=False)


def parse_backoff(text: str) -> Backoff:
    """`"fixed(5)"`, `"exponential(2, 10, 300)"`, `"delays(0, 1, 20)"`, `"lambda"`, as a config file writes them.

    Raises ValueError that names the text.
    """
    known: dict[str, Any] = {"exponential": exponential, "fixed": fixed, "delays": delays, "lambda": lambda_, "lambda_": lambda_}
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", text)
    if match and match[1] in known:
        try:
            return known[match[1]](*(float(part) for part in (match[2] or "").split(",") if part.strip()))  # type: ignore[no-any-return]
        except (TypeError, ValueError) as error:
            raise ValueError(f"backoff {text!r}: {error}") from None
    raise ValueError(f'backoff {text!r} is none of "exponential(first, factor, cap)", "fixed(seconds)", "delays(seconds, ...)", "lambda"')


def decide(
    outcome: Outcome, *, retries: int, backoff: Backoff, max_age: float, attempts: int, age: float, now: float, spread: float
) -> Decision:
    """What follows from an attempt. Pure: the same arguments give the same decision.

    attempts: those used up before this one. age: seconds since the event was accepted. now: seconds since 1970.
    spread: 0 <= spread < 1, fixed per invocation.
    """
    if isinstance(outcome, Succeeded):
        return Done()
    if isinstance(outcome, Interrupted):
        return Release()
    used = attempts + 1
    if isinstance(outcome, Failed):
        error_type, message, after = outcome.error_type, outcome.error_message, outcome.retry_after
        if outcome.final:
            return Dead("InvalidPayload" if error_type == "InvalidPayload" else "Rejected", error_type, message, used)
    else:
        error_type, message, after = "Sandbox.Timedout", f"Task timed out after {outcome.seconds:.2f} seconds", None
        if not outcome.ended:
            return Dead("Unstoppable", error_type, f"{message}, and the handler refused to end", used)
    if attempts >= retries:
        return Dead("RetriesExhausted", error_type, message, used)
    delay = backoff.delay(used, spread) if after is None else after
    if age + delay > max_age:
        return Dead("EventAgeExceeded", error_type, message, used)
    return RetryAt(now + delay, used)
