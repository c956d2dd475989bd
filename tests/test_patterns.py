"""EventBridge patterns, as event-ruler has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventrouter import EventRouterError, patterns
from eventrouter.patterns import PatternError


def matches(pattern: dict[str, Any] | str, event: dict[str, Any]) -> bool:
    return patterns.compile(pattern).matches(event)


def test_every_match_of_event_ruler_is_made(cases: Path) -> None:
    made = [json.loads(line) for line in (cases / "patterns" / "match.jsonl").read_text().splitlines()]
    for as_text in (True, False):
        wrong = [
            case["id"]
            for case in made
            if matches(case["pattern"] if as_text else json.loads(case["pattern"]), json.loads(case["event"]))
            != (case["expected"] == "match")
        ]
        assert made
        assert not wrong


def test_patterns_are_valid_where_event_ruler_takes_them(cases: Path) -> None:
    wrong = []
    for line in (cases / "patterns" / "validity.jsonl").read_text().splitlines():
        case = json.loads(line)
        try:
            patterns.compile(case["pattern"])
        except PatternError:
            valid = False
        else:
            valid = True
        if valid != (case["expected"] == "valid"):
            wrong.append(case["pattern"])
    assert not wrong


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ([None], None, True),
        ([None], "null", False),
        ([None], 0, False),
        ([""], "", True),
        ([""], None, False),
        ([True], True, True),
        ([True], 1, False),
        ([1], True, False),
        ([1], 1.0, True),
        ([1], "1", False),
        ([3.018e2], 301.8, True),
        ([12345678901234567890], 12345678901234567890, True),
        ([12345678901234567890], 12345678901234567891, False),  # they share a double
        ([{"exactly": "a"}], "a", True),
        ([{"prefix": ""}], "anything", True),
        ([{"prefix": "1"}], 12, False),
        ([{"prefix": {"equals-ignore-case": "aB"}}], "Abc", True),
        ([{"suffix": {"equals-ignore-case": ".PNG"}}], "x.png", True),
        ([{"suffix": {"equals-ignore-case": ".PNG"}}], "x.png\n", False),
        ([{"equals-ignore-case": "ß"}], "SS", True),
        ([{"equals-ignore-case": "SS"}], "ß", False),
        ([{"equals-ignore-case": "a.c"}], "abc", False),
        ([{"anything-but": "a"}], "b", True),
        ([{"anything-but": "a"}], "a", False),
        ([{"anything-but": "a"}], None, True),
        ([{"anything-but": ["a", "b"]}], "b", False),
        ([{"anything-but": [1, 2]}], 2.0, False),
        ([{"anything-but": [1, 2]}], "2", True),
        ([{"anything-but": {"prefix": ["a", "b"]}}], "bc", False),
        ([{"anything-but": {"suffix": "c"}}], "bc", False),
        ([{"anything-but": {"suffix": "c"}}], 5, True),
        ([{"anything-but": {"equals-ignore-case": ["A", "B"]}}], "b", False),
        ([{"anything-but": {"wildcard": ["*/a/*", "b*"]}}], "x/a/y", False),
        ([{"anything-but": "a"}], ["a", "b"], True),  # one element is enough
        ([{"numeric": ["=", 5]}], 5.0, True),
        ([{"numeric": ["=", 5]}], "5", False),
        ([{"numeric": [">=", 0, "<", 1]}], 0, True),
        ([{"numeric": [">=", 0, "<", 1]}], 1, False),
        ([{"numeric": [">=", 0, "<", 1]}], True, False),
        ([{"numeric": [">", 0]}], 10**400, False),  # no double holds it, so it can't be compared
        ([{"numeric": ["<", 5e9]}], -(10**12), True),
        ([{"cidr": "10.0.0.0/24"}], "10.0.0.255", True),
        ([{"cidr": "10.0.0.77/24"}], "10.0.0.1", True),
        ([{"cidr": "10.0.0.0/24"}], "10.0.1.0", False),
        ([{"cidr": "10.0.0.1/32"}], "10.0.0.1", True),
        ([{"cidr": "0.0.0.0/0"}], "256.0.0.1", False),
        ([{"cidr": "0.0.0.0/0"}], "::1", False),
        ([{"cidr": "2001:db8::/32"}], "2001:DB8:0:0:1::", True),
        (["2001:db8::1"], "2001:0DB8:0:0:0:0:0:1", True),
        (["10.0.0.1"], "10.0.0.2", False),
        ([{"wildcard": "a*b\\*c"}], "axxb*c", True),
        ([{"wildcard": "a*a"}], "a", False),  # the two ends don't overlap
        ([{"wildcard": ""}], "", True),
        ([{"exists": True}], None, True),
        ([{"exists": True}], [], False),
        ([{"exists": True}], {"inner": 1}, False),  # only a leaf is a field
        ([{"exists": False}], {"inner": 1}, True),
        ([{"exists": False}, None], None, True),
        ([{"exists": False}, None], 1, False),
        (["b"], ["a", ["b"]], True),
    ],
)
def test_a_field_matches_what_its_brackets_say(field: list[Any], value: Any, expected: bool) -> None:
    assert matches({"x": field}, {"x": value}) is expected


def test_a_dot_in_a_name_is_a_step_inside() -> None:
    for event in ({"a": {"b.c": 1}}, {"a.b": {"c": 1}}, {"a.b.c": 1}, {"a": {"b": {"c": 1}}}):
        assert matches({"a.b": {"c": [1]}}, event)


def test_fields_of_one_array_element_match_together() -> None:
    pattern = {"people": {"name": ["Ann"], "age": [40], "pets": {"kind": ["cat"], "legs": [3]}}}
    pets = [{"kind": "cat", "legs": 4}, {"kind": "dog", "legs": 3}]
    ann = {"name": "Ann", "age": 40, "pets": [*pets, {"kind": "cat", "legs": 3}]}
    assert matches(pattern, {"people": [{"name": "Bob"}, ann]})
    assert not matches(pattern, {"people": [{**ann, "pets": pets}]})
    assert not matches(pattern, {"people": [{**ann, "age": 41}, {"name": "Bob", "age": 40, "pets": ann["pets"]}]})


def test_absence_counts_within_the_element_of_the_fields_before_it() -> None:
    event = {"a": [{"x": 1}, {"x": 2, "y": 3}]}
    assert matches({"a": {"x": [1], "y": [{"exists": False}]}}, event)
    assert not matches({"a": {"x": [2], "y": [{"exists": False}]}}, event)
    assert not matches({"a": {"w": [{"exists": False}], "x": [1]}}, {"a": [{"x": 1}, {"x": 2, "w": 3}]})


def test_an_event_full_of_arrays_does_not_multiply_the_work() -> None:
    fields = [f"{letter}.{end}" for letter in "abcdefgh" for end in "xy"]
    pattern = patterns.compile({name: [1] for name in fields})
    both = [{"x": 1, "y": 1}] * 300
    apart = [{"x": 1}, {"y": 1}] * 3000
    assert pattern.matches(dict.fromkeys("abcdefgh", both))
    assert not pattern.matches({**dict.fromkeys("abcdefg", both), "h": apart})


def test_an_event_may_be_nested_deeply() -> None:
    event: Any = 1
    for _ in range(5000):
        event = [event]
    assert matches({"a": [1]}, {"a": event})
    assert not matches({"a": [2]}, {"a": event})


def test_or_joins_branches_beside_other_fields() -> None:
    pattern = {"s": ["x"], "$or": [{"a": [1]}, {"b": [2], "$or": [{"c": [3]}, {"d": [4]}]}], "in": {"$or": [{"e": [5]}, {"f": [6]}]}}
    assert matches(pattern, {"s": "x", "a": 1, "in": {"f": 6}})
    assert matches(pattern, {"s": "x", "b": 2, "d": 4, "in": {"e": 5}})
    assert not matches(pattern, {"s": "x", "b": 2, "in": {"e": 5}})
    assert not matches(pattern, {"s": "x", "a": 1, "in": {}})
    assert not matches(pattern, {"s": "y", "a": 1, "in": {"f": 6}})


def test_or_is_a_field_where_it_can_not_join() -> None:
    assert matches({"$or": {"a": [1]}}, {"$or": {"a": 1}})
    assert matches({"$or": [{"prefix": "a"}, {"prefix": "b"}]}, {"$or": "bc"})


def test_a_later_field_of_the_same_name_replaces_the_earlier() -> None:
    assert matches('{"a": [1], "a": [2]}', {"a": 2})
    assert not matches('{"a": [1], "a": [2]}', {"a": 1})
    assert matches('{"a": {"b": [1]}, "a": {"c": [2]}}', {"a": {"b": 1, "c": 2}})
    assert not matches('{"a": {"b": [1]}, "a": {"c": [2]}}', {"a": {"c": 2}})


@pytest.mark.parametrize(
    ("pattern", "error"),
    [
        ({}, "$: an empty object matches nothing; name a field, or leave it out"),
        ({"a": {"b": {}}}, "$.a.b: an empty object matches nothing; name a field, or leave it out"),
        ({"a": []}, "$.a: an empty array matches nothing; give a value, or leave the field out"),
        ({"a": "b"}, '$.a: must be an array of values or an object of fields; write ["b"]'),
        ({"a": [["b"]]}, "$.a[0]: must be a string, number, true, false, null or an operator, not an array"),
        ({"a": ["b", {"prefx": "c"}]}, "$.a[1]: unknown operator 'prefx'; did you mean 'prefix'?"),
        ({"a": [{"prefix": "b", "suffix": "c"}]}, "$.a[0]: must have one key, an operator, not 2"),
        ({"a": [{"prefix": 1}]}, "$.a[0].prefix: must be a string, not 1"),
        ({"a": [{"prefix": {"wildcard": "b"}}]}, "$.a[0].prefix: takes a string or equals-ignore-case, not 'wildcard'"),
        ({"a": [{"equals-ignore-case": ["b"]}]}, "$.a[0].equals-ignore-case: must be a string, not an array"),
        ({"a": [{"anything-but": []}]}, "$.a[0].anything-but: an empty array excludes nothing; give a value"),
        ({"a": [{"anything-but": [1, "b"]}]}, "$.a[0].anything-but: strings and numbers can't be mixed"),
        ({"a": [{"anything-but": True}]}, "$.a[0].anything-but: must be a string or a number, not true"),
        ({"a": [{"anything-but": {"prefix": ["b", ""]}}]}, "$.a[0].anything-but.prefix[1]: an empty prefix leaves nothing to match"),
        ({"a": [{"numeric": [">"]}]}, "$.a[0].numeric: > needs a number after it"),
        ({"a": [{"numeric": [">", "1"]}]}, '$.a[0].numeric[1]: must be a number, not "1"'),
        ({"a": [{"numeric": ["!", 1]}]}, '$.a[0].numeric[0]: must be =, <, <=, > or >=, not "!"'),
        ({"a": [{"numeric": ["<", 1, ">", 0]}]}, "$.a[0].numeric[2]: a range is > or >= with its number, then < or <= with its number"),
        ({"a": [{"numeric": [">", 1, "<", 1]}]}, "$.a[0].numeric: the range is empty: 1 is not below 1"),
        ({"a": [{"exists": "yes"}]}, '$.a[0].exists: must be true or false, not "yes"'),
        (
            {"a": [{"cidr": "10.0.0.0"}]},
            "$.a[0].cidr: must be an IP address, a slash and the bits of the mask, such as 10.0.0.0/24, not '10.0.0.0'",
        ),
        ({"a": [{"cidr": "10.0.0.0/33"}]}, "$.a[0].cidr: the mask of '10.0.0.0/33' must be 0 to 32 bits"),
        ({"a": [{"wildcard": "b**"}]}, "$.a[0].wildcard: two wildcards in a row at character 1"),
        ({"a": [{"wildcard": "b\\c"}]}, "$.a[0].wildcard: a backslash at character 1 that escapes neither * nor \\"),
        ({"$or": [{"a": [1]}, {"b": [{"prefx": "c"}]}]}, "$.$or[1].b[0]: unknown operator 'prefx'; did you mean 'prefix'?"),
        ({"a": [object], "b": [1]}, "$.a[0]: must be JSON, not type"),
        ('{"a": [1, 2 3]}', "$: is not JSON: Expecting ',' delimiter at line 1, column 13"),
        ('{"a": [NaN]}', "$: is not JSON: NaN is no JSON number"),
        ("[1]", "$: must be an object of fields, not an array"),
        ('{"a":' * 5000, "$: is nested too deeply"),
        ({"$or": [{"a": [1]}]}, "$.$or[0]: unknown operator 'a'; known: "),
    ],
)
def test_an_error_names_the_place_of_the_fault(pattern: Any, error: str) -> None:
    with pytest.raises(PatternError) as caught:
        patterns.compile(pattern)
    assert str(caught.value).startswith(error)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, EventRouterError)
    assert error.startswith(f"{caught.value.path}: ")


def test_too_many_combinations_are_refused() -> None:
    branches = [{str(at): [1]} for at in range(32)]
    with pytest.raises(PatternError, match="more than 1000 combinations"):
        patterns.compile({"a": {"$or": branches}, "b": {"$or": branches}})


def test_many_rules_find_what_each_alone_would(cases: Path) -> None:
    made = [json.loads(line) for line in (cases / "patterns" / "match.jsonl").read_text().splitlines()]
    compiled = [patterns.compile(text) for text in sorted({case["pattern"] for case in made})]
    rules = patterns.Rules[int]()
    for number, pattern in enumerate(compiled):
        rules.add(pattern, number)
    assert len(rules) == len(compiled)
    for case in made:
        event = json.loads(case["event"])
        assert rules.find(event) == [number for number, pattern in enumerate(compiled) if pattern.matches(event)]


_texts = st.sampled_from(["", "a", "A", "ab", "AB", "ba", "b*", "ß", "SS", "10.0.0.1", "10.0.0.01", "10.1.0.0", "::1", "0:0:0:0:0:0:0:1"])
_values = st.one_of(st.none(), st.booleans(), st.sampled_from([0, 1, 1.0, 5, 2**60, 2**60 + 1]), _texts)
_operators = st.one_of(
    st.fixed_dictionaries({"prefix": _texts}),
    st.fixed_dictionaries({"suffix": _texts}),
    st.fixed_dictionaries({"equals-ignore-case": _texts}),
    st.fixed_dictionaries({"prefix": st.fixed_dictionaries({"equals-ignore-case": _texts})}),
    st.fixed_dictionaries({"wildcard": st.sampled_from(["*", "a*", "*b", "a*b", "*a*", "ab"])}),
    st.fixed_dictionaries({"anything-but": st.lists(_texts, min_size=1)}),
    st.fixed_dictionaries({"numeric": st.sampled_from([["=", 1], [">", 0], [">=", 1, "<", 5]])}),
    st.fixed_dictionaries({"cidr": st.sampled_from(["10.0.0.0/8", "10.0.0.0/24", "::/64", "0.0.0.0/0"])}),
    st.fixed_dictionaries({"exists": st.booleans()}),
)
_names = st.sampled_from(["x", "y", "x.y", "z"])
_fields = st.dictionaries(
    _names,
    st.recursive(
        st.lists(st.one_of(_values, _operators), min_size=1, max_size=3),
        lambda inner: st.dictionaries(_names, inner, min_size=1, max_size=2),
        max_leaves=3,
    ),
    min_size=1,
    max_size=3,
)
_patterns = st.one_of(
    _fields, st.builds(lambda fields, branches: {**fields, "$or": branches}, _fields, st.lists(_fields, min_size=2, max_size=3))
)
_events = st.dictionaries(
    _names,
    st.recursive(_values, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_names, inner, max_size=3)), max_leaves=8),
)


@given(st.lists(_patterns, max_size=8), st.lists(_events, max_size=4))
def test_rules_are_only_faster_than_their_patterns(given_patterns: list[dict[str, Any]], events: list[dict[str, Any]]) -> None:
    rules = patterns.Rules[int]()
    compiled = [patterns.compile(pattern) for pattern in given_patterns]
    for number, pattern in enumerate(compiled):
        rules.add(pattern, number)
    for event in events:
        assert rules.find(event) == [number for number, pattern in enumerate(compiled) if pattern.matches(event)]


def flat(value: Any, path: str = "", chain: tuple[Any, ...] = (), here: str = "") -> list[tuple[str, Any, dict[Any, int]]]:
    """An event's fields with the elements they stand in, spelt out as plainly as can be."""
    if isinstance(value, dict):
        return [field for name, inner in value.items() for field in flat(inner, f"{path}.{name}".lstrip("."), chain, f"{here}.{name}")]
    if isinstance(value, list):
        found: list[tuple[str, Any, dict[Any, int]]] = []
        for at, inner in enumerate(value):
            inside = isinstance(inner, dict | list)
            found += flat(inner, path, (*chain, (here, at)) if inside else chain, f"{here}[{at}]")
        return found
    return [(path, value, dict(chain))]


@given(_patterns, _events)
def test_a_match_is_one_choice_of_fields_that_agree_on_array_elements(pattern: dict[str, Any], event: dict[str, Any]) -> None:
    compiled = patterns.compile(pattern)
    fields = flat(event)

    def search(left: Any, chosen: dict[Any, int]) -> bool:
        if not left:
            return True
        (name, leaf), *rest = left
        agreeing = [
            (value, inside) for path, value, inside in fields if path == name and all(chosen.get(a, at) == at for a, at in inside.items())
        ]
        if any(leaf.matches(value) and search(rest, {**chosen, **inside}) for value, inside in agreeing):
            return True
        return leaf.absent and not agreeing and search(rest, chosen)

    assert compiled.matches(event) == any(search(fields_of.items(), {}) for fields_of in compiled.combinations)


def test_a_text_that_is_an_object_is_looked_into_where_asked_for() -> None:
    pattern = patterns.compile({"Records": {"body": {"n": [1], "m": [{"exists": False}]}}})
    for body, found in (
        ('{"n": 1}', True),
        ('  {"n": 1}', True),
        ('{"n": 2}', False),
        ('{"n": 1, "m": 2}', False),
        ("n", False),
        ("{", False),
    ):
        event = {"Records": [{"body": "else"}, {"body": body}]}
        assert pattern.matches(event, in_texts=True) is found
        assert not pattern.matches(event)
    assert not pattern.matches({"Records": [{"body": '{"n":' * 100_000}]}, in_texts=True)
