import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventrouter import Part, Wild
from eventrouter.model import Segment
from eventrouter.routing import Index

SEGMENTS = st.sampled_from(["a", "b", "", "c", "ab", "abc", "cab"])
ENDS = st.sampled_from(["", "a", "ab", "b", "a/", "/b"])
PATHS = st.tuples(
    st.lists(SEGMENTS | st.just(Wild.ONE) | st.builds(Part, ENDS, ENDS, rest=st.just(False)), max_size=4),
    st.just(()) | st.just((Wild.REST,)) | st.tuples(st.builds(Part, ENDS, ENDS, rest=st.just(True))),
).map(lambda parts: (*parts[0], *parts[1]))


def lets_through(path: tuple[Segment, ...], subject: str) -> bool:
    parts = subject.split("/")
    if path and (path[-1] is Wild.REST or (isinstance(path[-1], Part) and path[-1].rest)):
        *path, last = path  # type: ignore[assignment]
        if len(parts) < len(path):
            return False
        rest = "/".join(parts[len(path) :])
        if isinstance(last, Part) and not (rest.startswith(last.begins) and rest.endswith(last.ends)):
            return False
        parts = parts[: len(path)]
    return len(parts) == len(path) and all(fits(want, got) for want, got in zip(path, parts, strict=True))


def fits(want: Segment, got: str) -> bool:
    if isinstance(want, Part):
        return got.startswith(want.begins) and got.endswith(want.ends)
    return want is Wild.ONE or want == got


@given(st.lists(PATHS, max_size=12), st.lists(SEGMENTS, min_size=1, max_size=5).map("/".join))
def test_finds_exactly_what_a_scan_would(paths: list[tuple[Segment, ...]], subject: str) -> None:
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
