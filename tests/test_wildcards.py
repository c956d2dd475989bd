from __future__ import annotations

import pytest

from eventrouter import Part, Wild, Wildcards
from eventrouter.errors import ConfigError


@pytest.mark.parametrize(
    ("pattern", "subject", "captures"),
    [
        ("orders", "orders", {}),
        ("orders", "order", None),
        ("a.c", "abc", None),  # a dot is a dot
        ("reports/{year}/{name}.csv", "reports/2026/may.csv", {"year": "2026", "name": "may"}),
        ("reports/{year}/{name}.csv", "reports/2026/q2/may.csv", None),
        ("{team}-alerts", "ops-alerts", {"team": "ops"}),
        ("{team}-alerts", "-alerts", None),
        ("logs/{rest+}", "logs/a/b", {"rest": "a/b"}),
        ("logs/{rest+}", "logs/", None),
        ("{rest+}", "line\nbreak", {"rest": "line\nbreak"}),
    ],
)
def test_match(pattern: str, subject: str, captures: dict[str, str] | None) -> None:
    assert Wildcards(pattern, "key").match(subject) == captures


def test_path_and_names() -> None:
    wildcards = Wildcards("a/{b}/x{c}/{d+}", "key")
    assert wildcards.names == ("b", "c", "d")
    assert wildcards.path == ("a", Wild.ONE, Part("x", ""), Wild.REST)


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("a/{b", "key 'a/{b': a wildcard is written {name}"),
        ("a/{}", "a wildcard is written"),
        ("a/{b+}/c", "nothing can follow it"),
        ("{a}/{a}", "wildcard 'a' must be a Python name that comes once"),
        ("{1a}", "wildcard '1a' must be a Python name"),
    ],
)
def test_what_is_no_pattern_is_refused(pattern: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Wildcards(pattern, "key")
    assert fault in str(caught.value)
