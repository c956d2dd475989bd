import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventrouter import Wild
from eventrouter.routing import Index

SEGMENTS = st.sampled_from(["a", "b", "", "c"])
PATHS = st.lists(SEGMENTS | st.just(Wild.ONE), max_size=4).flatmap(lambda p: st.sampled_from([tuple(p), (*p, Wild.REST)]))


def lets_through(path: tuple[str | Wild, ...], subject: str) -> bool:
    parts = subject.split("/")
    if path and path[-1] is Wild.REST:
        path = path[:-1]
        parts = parts[: len(path)] if len(parts) >= len(path) else []
        if not parts and path:
            return False
    return len(parts) == len(path) and all(want is Wild.ONE or want == got for want, got in zip(path, parts, strict=True))


@given(st.lists(PATHS, max_size=12), st.lists(SEGMENTS, min_size=1, max_size=5).map("/".join))
def test_finds_exactly_what_a_scan_would(paths: list[tuple[str | Wild, ...]], subject: str) -> None:
    index: Index[int] = Index()
    for number, path in enumerate(paths):
        index.add(path, number)
    expected = sorted(number for number, path in enumerate(paths) if lets_through(path, subject))
    assert sorted(index.find(subject)) == expected
    assert sorted(index.find(subject)) == expected  # from the cache


def test_an_addition_is_seen_after_a_look_up() -> None:
    index: Index[str] = Index()
    index.add(("a",), "one")
    assert index.find("a") == ("one",)
    index.add((Wild.ONE,), "two")
    assert set(index.find("a")) == {"one", "two"}


def test_the_cache_is_bounded() -> None:
    index: Index[str] = Index()
    index.add((Wild.REST,), "all")
    for number in range(10_000):
        assert index.find(f"topic/{number}") == ("all",)
    assert len(index._cache) <= 4096


def test_rest_comes_last() -> None:
    with pytest.raises(ValueError, match="last segment"):
        Index[int]().add((Wild.REST, "a"), 1)
