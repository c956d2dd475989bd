"""SNS filter policies: which messages a subscription wants, by their attributes or their body.

```python
from eventrouter_sns import filters

hot = filters.compile({"celsius": [{"numeric": [">", 90]}]})
hot.matches({"celsius": {"Type": "Number", "Value": "91"}})  # True
```
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from eventrouter import patterns

__all__ = ["FilterError", "FilterPolicy", "Scope", "compile"]

Scope = Literal["MessageAttributes", "MessageBody"]
MOST_KEYS: Final = 5
MOST_COMBINATIONS: Final = 150
MOST_BYTES: Final = 256 * 1024
_OR: Final = "$or"
_TEXTS: Final = frozenset(("prefix", "suffix", "equals-ignore-case", "wildcard", "cidr"))
_OPERATORS: Final = _TEXTS | {"anything-but", "exists", "numeric"}


class FilterError(ValueError):
    """A filter policy that SNS would refuse, in its words, and where the fault is."""

    def __init__(self, why: str, path: str = "") -> None:
        super().__init__(f"Invalid parameter: FilterPolicy: {why}{f' at {path}' if path else ''}")


class FilterPolicy:
    """A compiled policy; `compile` makes it. An empty one wants every message, and has no pattern."""

    __slots__ = ("pattern", "policy", "scope")

    def __init__(self, policy: Mapping[str, Any], scope: Scope) -> None:
        self.policy = policy
        self.scope = scope
        self.pattern = patterns.compile(policy) if policy else None

    def matches(self, message: Any) -> bool:
        """Whether the subscription wants the message.

        message: in scope MessageAttributes its attributes, as in an SNS record or as boto3 sends them; in scope MessageBody its
        body, as text, bytes or decoded. A body that is no JSON object never matches.
        """
        if self.pattern is None:
            return True
        if self.scope == "MessageBody":
            if isinstance(message, str | bytes):
                try:
                    message = msgspec.json.decode(message)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    return False
            return isinstance(message, dict) and self.pattern.matches(message)
        return self.pattern.matches(plain(message))

    def __repr__(self) -> str:
        return f"compile({dict(self.policy)!r}, {self.scope!r})"


_NOTHING: Final = object()


def plain(attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Attributes as the JSON object that policies are held against."""
    values = ((name, _value(attribute)) for name, attribute in attributes.items())
    return {name: value for name, value in values if value is not _NOTHING}


def _value(attribute: Mapping[str, Any]) -> Any:
    """An attribute as JSON has it. Binary ones aren't there for filters."""
    kind = attribute.get("Type") or attribute.get("DataType") or "String"
    value = attribute["Value"] if "Value" in attribute else attribute.get("StringValue")
    if kind.startswith("Binary") or value is None:
        return _NOTHING
    if not isinstance(value, str) or not kind.startswith(("Number", "String.Array")):
        return value
    try:
        found = msgspec.json.decode(value.strip())
    except msgspec.DecodeError:
        return value
    if kind.startswith("Number"):
        return found if isinstance(found, int | float) and not isinstance(found, bool) else value
    return found if isinstance(found, list) else value


def compile(policy: Mapping[str, Any] | str, scope: Scope = "MessageAttributes") -> FilterPolicy:
    """Compile a policy given as JSON text or decoded. Raises FilterError, a ValueError in SNS's words that names the place."""
    if scope not in ("MessageAttributes", "MessageBody"):
        raise ValueError(
            f"Invalid parameter: FilterPolicyScope: Invalid value [{scope}]. Please use either MessageBody or MessageAttributes"
        )
    if isinstance(policy, str):
        try:
            policy = msgspec.json.decode(policy)
        except msgspec.DecodeError as error:
            raise FilterError(f"failed to parse JSON. {error}") from None
    if not isinstance(policy, Mapping):
        raise FilterError("Filter policy must be a JSON object", "$")
    if scope == "MessageAttributes":
        # A bare text for an array of one: SNS itself refuses it, those who imitate it don't, and it can mean nothing else.
        policy = {name: [value] if isinstance(value, str) and name != _OR else value for name, value in policy.items()}
    try:
        combinations, nested = _check(policy, "$", 1)
        size = len(msgspec.json.encode(policy))
    except RecursionError:
        raise FilterError("Filter policy is too complex") from None
    except (TypeError, ValueError) as error:
        if isinstance(error, FilterError):
            raise
        raise FilterError(f"no JSON: {error}") from None
    if nested and scope == "MessageAttributes":
        raise ValueError("Invalid parameter: Filter policy scope MessageAttributes does not support nested filter policy")
    if len(policy) > MOST_KEYS:
        raise FilterError(f"Filter policy can not have more than {MOST_KEYS} keys")
    if combinations > MOST_COMBINATIONS or size > MOST_BYTES:
        raise FilterError("Filter policy is too complex")
    try:
        return FilterPolicy(policy, scope)
    except patterns.PatternError as error:
        raise FilterError(error.why, error.path) from None


def _check(policy: Mapping[str, Any], path: str, depth: int) -> tuple[int, bool]:
    """How many combinations of values a policy has, as SNS counts them, and whether it is nested."""
    combinations, nested = 1, False
    for name, value in policy.items():
        place = f"{path}.{name}"
        if name == _OR and isinstance(value, list) and all(isinstance(branch, Mapping) for branch in value):
            branches = [_check(branch, f"{place}[{at}]", depth) for at, branch in enumerate(value)]
            combinations *= sum(count for count, _ in branches)
            nested |= any(inner for _, inner in branches)
        elif isinstance(value, Mapping):
            combinations *= _check(value, place, depth + 1)[0]
            nested = True
        elif isinstance(value, list | tuple):
            for at, rule in enumerate(value):
                _check_rule(rule, f"{place}[{at}]")
            combinations *= len(value) * depth
        else:
            raise FilterError(f'"{name}" must be an object or an array', place)
    return combinations, nested


def _check_rule(rule: Any, path: str) -> None:
    if rule is None or isinstance(rule, str | bool | int | float):
        return
    if not isinstance(rule, Mapping):
        raise FilterError("Match value must be String, number, true, false, or null", path)
    if len(rule) != 1:
        raise FilterError("Only one key allowed in match expression", path)
    ((operator, value),) = rule.items()
    place = f"{path}.{operator}"
    if operator not in _OPERATORS:
        raise FilterError(f"Unrecognized match type {operator}", path)
    if operator in _TEXTS and not isinstance(value, str):
        raise FilterError(f"{operator} match pattern must be a string", place)
    if operator == "exists" and not isinstance(value, bool):
        raise FilterError("exists match pattern must be either true or false.", place)
    if operator == "numeric":
        _check_numeric(value, place)


def _check_numeric(range: Any, path: str) -> None:
    if not isinstance(range, list | tuple):
        raise FilterError("Value of numeric must be an array.", path)
    if not range:
        raise FilterError("Invalid member in numeric match: ]", path)
    operator, *rest = range
    if not isinstance(operator, str):
        raise FilterError(f"Invalid member in numeric match: {_shown(operator)}", f"{path}[0]")
    if operator not in ("=", "<", "<=", ">", ">="):
        raise FilterError(f"Unrecognized numeric range operator: {operator}", f"{path}[0]")
    bottom = _operand(operator, rest[:1], f"{path}[1]")
    if len(rest) < 2:
        return
    if operator not in (">", ">="):
        raise FilterError("Too many elements in numeric expression", f"{path}[2]")
    if not isinstance(rest[1], str):
        raise FilterError(f"Bad value in numeric range: {_shown(rest[1])}", f"{path}[2]")
    if rest[1] not in ("<", "<="):
        raise FilterError(f"Bad numeric range operator: {rest[1]}", f"{path}[2]")
    if bottom >= _operand(rest[1], rest[2:3], f"{path}[3]"):
        raise FilterError("Bottom must be less than top", path)
    if len(rest) > 3:
        raise FilterError("Too many terms in numeric range expression", f"{path}[4]")


def _operand(operator: str, value: list[Any], path: str) -> float:
    if not value or isinstance(value[0], bool) or not isinstance(value[0], int | float):
        raise FilterError(f"Value of {'equals' if operator == '=' else operator} must be numeric", path)
    return value[0]


def _shown(value: Any) -> str:
    return msgspec.json.encode(value).decode()
