"""Filter policies, against conformance data and SNS's own words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eventrouter_sns import filters

CASES = "sns/filter_policies.jsonl"


def test_every_case_of_the_conformance_data(cases: Path) -> None:
    wrong = []
    lines = (cases / CASES).read_text().splitlines()
    for case in map(json.loads, lines):
        policy = filters.compile(case["filter_policy"], scope=case["scope"])
        message = case["message"] if case["scope"] == "MessageBody" else case["message_attributes"]
        if policy.matches(message) != (case["expected"] == "deliver"):
            wrong.append(case["id"])
    assert len(lines) >= 116
    assert wrong == []


def test_attributes_as_boto3_sends_them() -> None:
    policy = filters.compile({"n": [{"numeric": [">", 3]}], "s": ["x"], "l": ["b"]})
    assert policy.matches(
        {
            "n": {"DataType": "Number", "StringValue": "3.5"},
            "s": {"DataType": "String", "StringValue": "x"},
            "l": {"DataType": "String.Array", "StringValue": '["a", "b"]'},
        }
    )
    assert not policy.matches({"n": {"DataType": "String", "StringValue": "3.5"}, "s": {"DataType": "String", "StringValue": "x"}})


@pytest.mark.parametrize("policy", [{"b": [{"exists": True}]}, {"b": [{"anything-but": "x"}]}])
def test_binary_attributes_are_not_there(policy: Any) -> None:
    for attribute in ({"Type": "Binary", "Value": "AA=="}, {"DataType": "Binary", "BinaryValue": b"\0"}):
        assert not filters.compile(policy).matches({"b": attribute})
        assert filters.compile({"b": [{"exists": False}]}).matches({"b": attribute})


@pytest.mark.parametrize("value", ["1e2", "100", "100.0", " 100"])
def test_numbers_are_compared_as_numbers(value: str) -> None:
    assert filters.compile({"n": [100]}).matches({"n": {"Type": "Number", "Value": value}})
    assert not filters.compile({"n": ["100"]}).matches({"n": {"Type": "Number", "Value": value}})


@pytest.mark.parametrize("body", ['{"a": {"b": 1}}', b'{"a": {"b": 1}}', {"a": {"b": 1}}])
def test_a_body_is_text_or_decoded(body: Any) -> None:
    assert filters.compile({"a": {"b": [1]}}, scope="MessageBody").matches(body)


@pytest.mark.parametrize("body", ["", "no JSON", "[]", "1", "null", b"\xff", [], None, 1, '{"a": 1'])
def test_what_is_no_object_never_matches(body: Any) -> None:
    assert not filters.compile({"a": [{"exists": False}]}, scope="MessageBody").matches(body)


def test_a_policy_may_be_text() -> None:
    assert filters.compile('{"a": ["x"]}').matches({"a": {"Type": "String", "Value": "x"}})


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ([["value"]], "Match value must be String, number, true, false, or null at $.key[0]"),
        ([{"wrong-operator": True}], "Unrecognized match type wrong-operator at $.key[0]"),
        ([{"suffix": "value", "prefix": "value2"}], "Only one key allowed in match expression at $.key[0]"),
        ([{"suffix": 100}], "suffix match pattern must be a string at $.key[0].suffix"),
        ([{"suffix": None}], "suffix match pattern must be a string"),
        ([{"prefix": ["test"]}], "prefix match pattern must be a string"),
        ({"suffix": "value"}, '"suffix" must be an object or an array'),
        (1, '"key" must be an object or an array'),
        ([{"numeric": []}], "Invalid member in numeric match: ]"),
        ([{"numeric": ["operator"]}], "Unrecognized numeric range operator: operator"),
        ([{"numeric": [1, "<="]}], "Invalid member in numeric match: 1"),
        ([{"numeric": ["=", "000"]}], "Value of equals must be numeric"),
        ([{"numeric": [">="]}], "Value of >= must be numeric"),
        ([{"numeric": ["<", 100, ">", 10]}], "Too many elements in numeric expression"),
        ([{"numeric": [">=", 1, ">", 2]}], "Bad numeric range operator: >"),
        ([{"numeric": [">", 3, "<", 1]}], "Bottom must be less than top"),
        ([{"numeric": [">", 20, "<="]}], "Value of <= must be numeric"),
        ([{"numeric": [">", 20, 30]}], "Bad value in numeric range: 30"),
        ([{"numeric": [">", 20, "test"]}], "Bad numeric range operator: test"),
        ([{"numeric": [">", "20", "<", "30"]}], "Value of > must be numeric"),
        ([{"numeric": [">", 20, "<", "30"]}], "Value of < must be numeric"),
        ([{"numeric": [">", 20, "<", 30, "<", 50]}], "Too many terms in numeric range expression"),
        ([{"exists": None}], "exists match pattern must be either true or false."),
        ([{"exists": "no"}], "exists match pattern must be either true or false."),
        ([{"cidr": "10.0.0.0"}], "10.0.0.0"),
        ([], "$.key"),
        ([str(n) for n in range(151)], "Filter policy is too complex"),
    ],
)
def test_a_bad_policy_is_refused_in_the_words_of_sns(rules: Any, why: str) -> None:
    with pytest.raises(ValueError, match="^Invalid parameter: FilterPolicy: ") as told:
        filters.compile({"key": rules})
    assert why in str(told.value)


def test_limits() -> None:
    keys = {f"key{n}": ["x"] for n in range(6)}
    with pytest.raises(ValueError, match="can not have more than 5 keys"):
        filters.compile(keys)
    filters.compile({"a": keys, "b": ["x"]}, scope="MessageBody")  # only those on top count
    filters.compile({"a": [str(n) for n in range(75)], "b": ["x", "y"]})
    with pytest.raises(ValueError, match="too complex"):
        filters.compile({"a": [str(n) for n in range(76)], "b": ["x", "y"]})
    # In a body, values count as often as they are deep: 4 * 3 levels, times 3 * 2 levels.
    deep: dict[str, Any] = {"a": {"b": {"c": list("wxyz")}}, "d": {"e": list("xyz")}}
    filters.compile(deep, scope="MessageBody")
    with pytest.raises(ValueError, match="too complex"):
        filters.compile({**deep, "f": list("xyz")}, scope="MessageBody")
    # Branches add up: (50 + 50) * 2.
    branches = [{"b": [str(n) for n in range(50)]}, {"c": [str(n) for n in range(50)]}]
    filters.compile({"$or": branches, "a": ["x"]})
    with pytest.raises(ValueError, match="too complex"):
        filters.compile({"$or": branches, "a": ["x", "y"]})


@pytest.mark.parametrize("policy", [{"a": {"b": ["x"]}}, {"a": ["x"], "$or": [{"b": ["x"]}, {"c": {"d": ["x"]}}]}])
def test_attributes_are_flat(policy: Any) -> None:
    filters.compile(policy, scope="MessageBody")
    with pytest.raises(ValueError, match="^Invalid parameter: Filter policy scope MessageAttributes does not support nested"):
        filters.compile(policy)


def test_what_is_no_policy_or_scope() -> None:
    with pytest.raises(ValueError, match="failed to parse JSON"):
        filters.compile("{")
    with pytest.raises(ValueError, match="must be a JSON object"):
        filters.compile("[]")
    with pytest.raises(ValueError, match=r"FilterPolicyScope: Invalid value \[Body\]"):
        filters.compile({}, scope="Body")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="FilterPolicy: "):
        filters.compile({"a": [object()]})
    deep: Any = ["x"]
    for _ in range(5000):
        deep = {"a": deep}
    with pytest.raises(ValueError, match="too complex"):
        filters.compile(deep, scope="MessageBody")
