import pytest

from eventrouter.errors import ConfigError
from eventrouter.limits import Pool, share_out


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
    shared, own = share_out(1000, {"a": 600, "b": 300, "closed": 0})
    assert shared.size == 100
    assert {name: pool.size for name, pool in own.items()} == {"a": 600, "b": 300, "closed": 0}


def test_at_least_100_stay_unreserved() -> None:
    with pytest.raises(ConfigError, match=r"leaves 99 of 1000.*a \(901\)"):
        share_out(1000, {"a": 901})
    with pytest.raises(ConfigError, match="leaves 9 of 10"):
        share_out(10, {"a": 1})


def test_a_small_account_without_reservations_is_fine() -> None:
    assert share_out(10, {})[0].size == 10
    assert share_out(10, {"closed": 0})[0].size == 10
