from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventrouter import Failed, Interrupted, Outcome, Succeeded, TimedOut, delays, exponential, fixed, lambda_
from eventrouter.model import Dead, Decision, Done, Release, RetryAt
from eventrouter.retry import Backoff, decide, parse_backoff

FAILED = Failed("ValueError", "bad")
LATE = TimedOut(3.0)


def settle(outcome: Outcome, **given: Any) -> Decision:
    defaults: dict[str, Any] = {
        "retries": 2,
        "backoff": fixed(10),
        "max_age": 3600,
        "attempts": 0,
        "age": 1.0,
        "now": 1001.0,
        "spread": 0.5,
    }
    return decide(outcome, **{**defaults, **given})


@pytest.mark.parametrize(
    ("outcome", "given", "decision"),
    [
        (Succeeded(1), {}, Done()),
        (Interrupted(), {"attempts": 2}, Release()),
        (FAILED, {}, RetryAt(1011, 1)),
        (FAILED, {"attempts": 1}, RetryAt(1011, 2)),
        (FAILED, {"attempts": 2}, Dead("RetriesExhausted", "ValueError", "bad", 3)),
        (FAILED, {"retries": 0}, Dead("RetriesExhausted", "ValueError", "bad", 1)),
        (LATE, {}, RetryAt(1011, 1)),
        (LATE, {"attempts": 2}, Dead("RetriesExhausted", "Sandbox.Timedout", "Task timed out after 3.00 seconds", 3)),
        (
            TimedOut(3.0, ended=False),
            {},
            Dead("Unstoppable", "Sandbox.Timedout", "Task timed out after 3.00 seconds, and the handler refused to end", 1),
        ),
        (Failed("Retry", "later", retry_after=77), {}, RetryAt(1078, 1)),
        (Failed("Retry", "later", retry_after=77), {"attempts": 2}, Dead("RetriesExhausted", "Retry", "later", 3)),
        (Failed("Reject", "no", final=True), {}, Dead("Rejected", "Reject", "no", 1)),
        (Failed("InvalidPayload", "$.a: no", final=True), {}, Dead("InvalidPayload", "InvalidPayload", "$.a: no", 1)),
        (FAILED, {"max_age": 10.9}, Dead("EventAgeExceeded", "ValueError", "bad", 1)),
    ],
)
def test_decisions(outcome: Outcome, given: dict[str, Any], decision: Decision) -> None:
    assert settle(outcome, **given) == decision


@given(st.integers(0, 200), st.integers(0, 185), st.floats(0, 0.999), st.sampled_from([FAILED, LATE]))
def test_attempts_never_exceed_the_policy(attempts: int, retries: int, spread: float, outcome: Outcome) -> None:
    decision = settle(outcome, attempts=attempts, retries=retries, spread=spread, max_age=float("inf"), backoff=exponential(2, 10, 300))
    assert isinstance(decision, RetryAt) == (attempts < retries)
    assert isinstance(decision, RetryAt | Dead)
    assert decision.attempts == attempts + 1


def test_back_offs() -> None:
    assert [exponential(2, 10, 300, jitter=False).delay(n, 0) for n in (1, 2, 3, 4, 5000)] == [2, 20, 200, 300, 300]
    assert [fixed(7).delay(n, 0.9) for n in (1, 2, 9)] == [7, 7, 7]
    assert [lambda_().delay(n, 0.1) for n in (1, 2, 3)] == [60, 120, 120]


@given(st.integers(1, 10), st.floats(0, 0.9999))
def test_jitter_spreads_by_a_tenth(retry: int, spread: float) -> None:
    plain = exponential(2, 10, 300, jitter=False).delay(retry, 0)
    assert 0.9 * plain <= exponential(2, 10, 300).delay(retry, spread) <= 1.1 * plain


@pytest.mark.parametrize(
    ("text", "backoff"),
    [("fixed(5)", fixed(5)), ("exponential(2, 10, 300)", exponential(2, 10, 300)), (" lambda ", lambda_()), ("lambda_()", lambda_())],
)
def test_back_offs_in_config_files(text: str, backoff: Backoff) -> None:
    assert parse_backoff(text) == backoff
    assert parse_backoff(str(exponential(1, 2, 3))) == exponential(1, 2, 3)


@pytest.mark.parametrize(
    "text", ["", "fixed", "fixed(x)", "fixed(-1)", "linear(3)", "exponential(1)", "fixed(1, 2)", "exponential(1, 0.5, 3)"]
)
def test_bad_back_offs_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="backoff"):
        parse_backoff(text)


@pytest.mark.parametrize(
    "make", [lambda: fixed(-1), lambda: fixed(float("nan")), lambda: exponential(-1, 2, 3), lambda: exponential(5, 2, 3)]
)
def test_back_offs_out_of_range(make: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        make()


def test_delays_are_taken_one_by_one_and_the_last_again() -> None:
    backoff = delays(0, 1.5, 20)
    assert [backoff.delay(retry, 0.99) for retry in range(1, 6)] == [0, 1.5, 20, 20, 20]
    assert parse_backoff(str(backoff)) == parse_backoff("delays(0, 1.5, 20)") == backoff


@pytest.mark.parametrize("seconds", [(), (-1,), (1, float("inf")), (float("nan"),)])
def test_delays_that_are_none(seconds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        delays(*seconds)
