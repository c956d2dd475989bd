import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventrouter.errors import BadOption, ConfigError
from eventrouter.limits import Account, Pool, Rate, parse_rate


def test_slots_run_out_and_come_back() -> None:
    pool = Pool(2)
    assert [pool.take(), pool.take(), pool.take()] == [True, True, False]
    pool.give()
    assert pool.take()
    assert not Pool(0).take()


def test_who_waited_longest_is_called_first_until_one_takes_it() -> None:
    pool = Pool(1)
    pool.take()
    called: list[str] = []
    pool.wait(lambda: called.append("uninterested"))  # type: ignore[func-returns-value, return-value]
    pool.wait(lambda: called.append("first") or True)  # type: ignore[func-returns-value]
    pool.wait(lambda: called.append("second") or True)  # type: ignore[func-returns-value]
    assert len(pool.waiting) == 3
    pool.give()
    assert called == ["uninterested", "first"]
    pool.give()
    pool.give()
    assert called == ["uninterested", "first", "second"]
    assert not pool.waiting


def test_the_last_tenth_is_for_those_that_have_little() -> None:
    pool = Pool(100, sharers=5)
    assert [pool.take(active) for active in range(91)] == [True] * 90 + [False]
    assert [pool.take(active) for active in (0, 1, 2, 0)] == [True, True, False, True]
    assert all(Pool(100).take(active) for active in range(100))  # nobody to share with


def test_reserved_concurrency_is_taken_from_the_account() -> None:
    account = Account(1000, {"a": 600, "b": 300, "closed": 0}, 5)
    assert {name: account.pool(name).size for name in ("a", "b", "closed", "x", "y")} == {
        "a": 600,
        "b": 300,
        "closed": 0,
        "x": 100,
        "y": 100,
    }
    assert account.pool("x") is account.pool("y")


def test_at_least_100_stay_unreserved() -> None:
    with pytest.raises(ConfigError, match=r"leaves 99 of 1000.*a \(901\)"):
        Account(1000, {"a": 901}, 2)
    with pytest.raises(ConfigError, match="leaves 9 of 10"):
        Account(10, {"a": 1}, 2)


def test_a_small_account_without_reservations_is_fine() -> None:
    assert Account(10, {}, 1).pool("a").size == 10
    assert Account(10, {"closed": 0}, 2).pool("a").size == 10


def test_reservations_change_while_slots_are_taken() -> None:
    account = Account(1000, {"a": 600}, 3)
    a, shared = account.pool("a"), account.pool("x")
    assert all(a.take() for _ in range(10))
    account.reserve({"a": 5, "x": 20})
    assert (account.pool("a"), a.size, a.free, shared.size) == (a, 5, -5, 975)
    assert not a.take()
    for _ in range(6):
        a.give()
    assert a.take()
    assert not a.take()
    with pytest.raises(ConfigError, match=r"leaves 75 of 1000.*a \(5\), x \(920\)"):
        account.reserve({"x": 920})
    assert (account.pool("x").size, shared.size) == (20, 975)
    account.reserve({"x": None, "a": None})
    assert account.pool("x") is account.pool("a") is shared
    assert shared.size == 1000


def test_rates_are_read() -> None:
    assert [parse_rate(text) for text in ("100/s", " 30 / m", "5/h", "1/d")] == [(100, 1), (30, 60), (5, 3600), (1, 86400)]
    for text in ("", "0/s", "-1/s", "1.5/s", "100", "100/w", "/s", "100/ss", "9999999999/s"):
        with pytest.raises(BadOption, match=r"rate=.*write a whole number a second"):
            parse_rate(text)


def test_a_rate_gives_so_many_at_once_and_then_evenly() -> None:
    rate = Rate(4, 2)
    assert [rate.take("a", 100) for _ in range(5)] == [0, 0, 0, 0, 0.5]
    assert rate.take("b", 100) == 0
    assert [rate.take("a", 100.5) for _ in range(2)] == [0, 0.5]
    assert [rate.take("a", 110) for _ in range(5)] == [0, 0, 0, 0, 0.5]


def test_those_who_wait_get_turns_one_after_another_and_have_them() -> None:
    rate = Rate(1, 1)
    assert rate.book("a", 0, 100) == 0
    assert [rate.book("a", 0.5, 100) for _ in range(3)] == [0.5, 1.5, 2.5]
    assert rate.take("a", 1.0) == pytest.approx(3), "a request doesn't take what was promised"
    assert rate.book("a", 1.0, 100) == 0
    assert rate.book("a", 1.0, 100) == pytest.approx(3), "one that is new waits behind those that were there"
    assert rate.book("a", 1.995, 100) == 0, "a hair too early"
    assert [rate.book("a", now, 100) for now in (3, 4, 5)] == [0, 0, 0]
    assert rate.book("a", 5, 100) == 1


def test_who_has_no_patience_is_promised_nothing() -> None:
    rate = Rate(1, 60)
    assert rate.book("a", 0, 100) == 0
    assert rate.book("a", 0, 30) == 30
    assert rate.book("a", 0, 100) == 60
    assert [rate.book("a", 0, 1e6) for _ in range(20)][12:] == [840, 900, *[900] * 6], "and nobody long in advance"


def test_what_is_forgotten_is_at_rest() -> None:
    rate = Rate(10, 1)
    for n in range(300_000):
        assert rate.take(str(n), n / 10_000) == 0
    assert len(rate) < 4096
    held = Rate(1, 86400)
    for n in range(250_000):
        assert held.take(str(n), n / 10_000) == 0
    assert len(held) <= 100_000
    assert held.take("249999", 30) > 0, "the newest are remembered"


@given(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 3), st.floats(0, 2), st.booleans()), max_size=60))
def test_no_rate_is_ever_exceeded(count: int, calls: list[tuple[int, float, bool]]) -> None:
    """In any stretch of time no key has more turns than so many at once and what came free in it; and who waits has its turn in time."""
    rate, now = Rate(count, 1), 0.0
    turns: dict[str, list[float]] = {}
    waiting: list[tuple[float, str]] = []
    for number, pause, request in calls:
        end, key = now + pause, str(number)
        while waiting and min(waiting)[0] <= end:
            now, back = waiting.pop(waiting.index(min(waiting)))
            assert rate.book(back, now, 1e6) == 0
            turns.setdefault(back, []).append(now)
        now = end
        wait = rate.take(key, now) if request else rate.book(key, now, 1e6)
        if wait == 0:
            turns.setdefault(key, []).append(now)
        elif not request:
            waiting.append((now + wait, key))
    for times in turns.values():
        for first in range(len(times)):
            for last in range(first, len(times)):
                assert last - first + 1 <= count + (times[last] - times[first] + 0.02) * count
