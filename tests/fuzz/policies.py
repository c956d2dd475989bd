"""Make up policies and requests, and hold the decisions against those of another evaluator, the plainest that does it.

    python tests/fuzz/policies.py --minutes 10 --seed 1

No policy may crash it, whatever it is (PolicyError says what is wrong with one), and none may allow what the plain one does not.
"""

from __future__ import annotations

import argparse
import base64
import copy
import ipaddress
import json
import random
import re
import sys
import time
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, NamedTuple

from eventrouter.permissions import PolicyError, evaluate

# The plain evaluator. Nothing is compiled, nothing is shared with the real one.


class Unknown(Exception):
    """A variable that the request says nothing of."""


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def as_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def look_up(context: dict[str, Any], key: str) -> list[str]:
    found = [value for name, value in context.items() if name.lower() == key.lower()]
    return [as_text(value) for value in as_list(found[0]) if value is not None] if found else []


def tokens(text: str, context: dict[str, Any], variables: bool) -> list[str]:
    """Characters; `*` and `?` of the pattern itself as "ANY" and "ONE"."""
    out: list[str] = []
    while text:
        if variables and text.startswith("${"):
            inside, text = text[2:].split("}", 1)
            if inside in ("*", "?", "$"):
                out += inside
                continue
            key, comma, default = inside.partition(",")
            values = look_up(context, key.strip())
            if len(values) == 1:
                out += values[0]
            elif comma:
                out += default.strip().strip("'")
            else:
                raise Unknown(key)
            continue
        out.append({"*": "ANY", "?": "ONE"}.get(text[0], text[0]))
        text = text[1:]
    return out


def glob(pattern: list[str], text: str) -> bool:
    """By a table: which beginnings of the text the pattern so far stands for."""
    reach = {0}
    for token in pattern:
        if token == "ANY":
            reach = set(range(min(reach), len(text) + 1)) if reach else set()
        else:
            reach = {at + 1 for at in reach if at < len(text) and token in ("ONE", text[at])}
    return len(text) in reach


def literally(pattern: list[str]) -> str:
    return "".join({"ANY": "*", "ONE": "?"}.get(token, token) for token in pattern)


def arn_like(pattern: list[str], text: str) -> bool:
    parts: list[list[str]] = [[]]
    for token in pattern:
        if token == ":" and len(parts) < 6:
            parts.append([])
        else:
            parts[-1].append(token)
    pieces = text.split(":", 5)
    if len(pieces) != 6 or pieces[0] != "arn":
        return False
    while len(parts) < 6:  # its last one ends in `*`
        parts.append(["ANY"])
    return all(glob(part, piece) for part, piece in zip(parts, pieces, strict=True))


def number(text: str) -> Fraction | None:
    return Fraction(text) if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", text) else None


def moment(text: str) -> Fraction | None:
    if number(text) is not None:
        return number(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return Fraction((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())


def encoded(text: str) -> bool:
    return len(text) % 4 == 0 and re.fullmatch(r"[A-Za-z0-9+/]*={0,2}", text) is not None


def in_network(text: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(text) in ipaddress.ip_interface(network).network
    except ValueError:
        return False


def compare(base: str, wanted: str, value: str, context: dict[str, Any], variables: bool) -> bool:
    """Whether one value of the request is as the operator, without its Not, wants it."""
    if base == "Bool" or base.startswith(("String", "Arn")):
        pattern = tokens(wanted, context, variables)
        if base == "StringLike":
            return glob(pattern, value)
        if base.startswith("Arn"):
            return arn_like(pattern, value)
        if base in ("StringEqualsIgnoreCase", "Bool"):
            return literally(pattern).lower() == value.lower()
        return literally(pattern) == value
    if base == "BinaryEquals":
        return encoded(value) and base64.b64decode(wanted) == base64.b64decode(value)
    if base == "IpAddress":
        return in_network(value, wanted)
    read = number if base.startswith("Numeric") else moment
    one, two = read(value), read(wanted)
    if one is None or two is None:
        return False
    how = base.removeprefix("Numeric").removeprefix("Date")
    return {
        "Equals": one == two, "LessThan": one < two, "LessThanEquals": one <= two,
        "GreaterThan": one > two, "GreaterThanEquals": one >= two,
    }[how]  # fmt: skip


def condition_holds(name: str, key: str, wanted: list[str], context: dict[str, Any], variables: bool, allows: bool) -> bool:
    values = look_up(context, key)
    if name == "Null":
        return any((not values) == (text.lower() == "true") for text in wanted)
    of_set = name.split(":", maxsplit=1)[0] if ":" in name else ""
    name = name.rsplit(":", maxsplit=1)[-1]
    if name.endswith("IfExists"):
        if not values:
            return True
        name = name[: -len("IfExists")]
    negated = "Not" in name
    base = name.replace("Not", "")
    if not values:
        return {"ForAllValues": True, "ForAnyValue": False, "": negated}[of_set]
    results = []
    for value in values:
        same = False
        for text in wanted:
            try:
                same = compare(base, text, value, context, variables) or same
            except Unknown:
                if negated and allows:
                    return False
        results.append(same != negated)
    if of_set == "ForAllValues" or (negated and not of_set):
        return all(results)
    return any(results)


def principal_is(principal: Any, context: dict[str, Any]) -> bool:
    if principal == "*":
        return True
    for kind, names in principal.items():
        for name in as_list(names):
            if kind == "AWS" and name == "*":
                return True
            if kind == "AWS" and re.fullmatch(r"\d{12}|arn:aws:iam::\d{12}:root", name):
                if look_up(context, "aws:PrincipalAccount") == [re.findall(r"\d{12}", name)[0]]:
                    return True
            elif look_up(context, "aws:PrincipalArn" if kind == "AWS" else "aws:PrincipalServiceName") == [name]:
                return True
    return False


def statement_applies(one: dict[str, Any], action: str, resource: str, context: dict[str, Any], variables: bool) -> bool:
    allows = one["Effect"] == "Allow"
    if "Principal" in one and not principal_is(one["Principal"], context):
        return False
    if "NotPrincipal" in one and principal_is(one["NotPrincipal"], context):
        return False
    named = any(glob(tokens(text.lower(), {}, False), action.lower()) for text in as_list(one.get("Action", one.get("NotAction"))))
    if named != ("Action" in one):
        return False
    if "Resource" in one or "NotResource" in one:
        named = False
        for text in as_list(one.get("Resource", one.get("NotResource"))):
            try:
                named = glob(tokens(text, context, variables), resource) or named
            except Unknown:
                if "NotResource" in one and allows:
                    return False
        if named != ("Resource" in one):
            return False
    return all(
        condition_holds(name, key, [as_text(value) for value in as_list(wanted)], context, variables, allows)
        for name, keys in one.get("Condition", {}).items()
        for key, wanted in keys.items()
    )


def plainly(policies: list[dict[str, Any]], action: str, resource: str, context: dict[str, Any]) -> str:
    effects = {
        one["Effect"]
        for policy in policies
        for one in as_list(policy["Statement"])
        if statement_applies(one, action, resource, context, policy.get("Version") == "2012-10-17")
    }
    return "explicitDeny" if "Deny" in effects else "allowed" if "Allow" in effects else "implicitDeny"


# What is made up. The words are few, so that much of it meets.

ACTIONS = ["s3:GetObject", "s3:PutObject", "sqs:SendMessage", "s3:getobject"]
ACTION_PATTERNS = [*ACTIONS, "*", "s3:*", "s3:Get*", "s3:?etObject", "sqs:*Message", "S3:P*t*"]
RESOURCES = ["arn:aws:s3:::b/a", "arn:aws:s3:::b/ab/c", "arn:aws:s3:::b/*", "arn:aws:sqs:local:000000000000:q", "arn:aws:s3:::b/x:y"]
RESOURCE_PATTERNS = [
    *RESOURCES, "*", "arn:aws:s3:::b/*", "arn:aws:s3:::*/a?/*", "arn:aws:s3:::b/${aws:username}", "arn:aws:s3:::b/${aws:username, 'a'}",
    "arn:aws:s3:::b/${*}", "arn:*", "arn:aws:sqs:*:*:q", "arn:aws:s3:::b/${aws:PrincipalTag/team}*", "arn:aws:s3:::*a*b*c",
    "arn:aws:s3:::b/${?}",
]  # fmt: skip
KEYS = ["aws:username", "aws:PrincipalTag/team", "s3:prefix", "aws:SourceIp", "aws:CurrentTime", "aws:SourceArn", "aws:UserName", "x:n"]
TEXTS = [
    "a",
    "ab",
    "A",
    "a*",
    "*",
    "",
    "?",
    "a b",
    "ä",
    "${aws:username}",
    "${aws:username}*",
    "${s3:prefix, 'ab'}",
    "${$}",
    "true",
    "b/x:y",
]
VALUES: dict[str, list[Any]] = {
    "String": TEXTS,
    "Numeric": ["1", 1, 2, "2.5", "-3", 10, 2.5],
    "Date": ["2026-01-01T00:00:00Z", "2026-01-01", "1767225600", 1767225601, "2026-01-01T01:00:00+01:00"],
    "Bool": ["true", True, False, "False"],
    "Binary": ["YQ==", "YWI=", ""],
    "Ip": ["10.0.0.0/8", "10.1.2.3", "2001:db8::/32", "0.0.0.0/0"],
    "Arn": [text for text in RESOURCE_PATTERNS if text.startswith("arn:")] + ["*"],
    "Null": ["true", "false", True],
}
CONTEXT_VALUES = [
    "a", "ab", "A", "*", "", "?", "ä", "true", True, False, "1", 1, 2.5, "-3", 10, "2026-01-01T00:00:00Z", "2026-01-01", 1767225600,
    "10.1.2.3", "2001:db8::1", "11.0.0.1", "YQ==", "YWI=", *RESOURCES, None, ["a", "ab"], ["a", None], [], ["1", "2"], ["10.0.0.1", "x"],
]  # fmt: skip
COMPARISONS = ["Equals", "NotEquals", "LessThan", "LessThanEquals", "GreaterThan", "GreaterThanEquals"]
OPERATORS = [
    *(f"String{how}" for how in ("Equals", "NotEquals", "EqualsIgnoreCase", "NotEqualsIgnoreCase", "Like", "NotLike")),
    *(f"{kind}{how}" for kind in ("Numeric", "Date") for how in COMPARISONS),
    "Bool", "BinaryEquals", "IpAddress", "NotIpAddress", "ArnEquals", "ArnLike", "ArnNotEquals", "ArnNotLike",
]  # fmt: skip
PRINCIPALS: list[Any] = [
    "*", {"AWS": "*"}, {"Service": "s3.amazonaws.com"}, {"Service": ["sns.amazonaws.com", "s3.amazonaws.com"]}, {"AWS": "000000000000"},
    {"AWS": "arn:aws:iam::000000000000:root"}, {"AWS": ["arn:aws:iam::000000000000:role/r", "111111111111"]},
]  # fmt: skip
WHO: list[dict[str, Any]] = [
    {}, {"aws:PrincipalServiceName": "s3.amazonaws.com"}, {"aws:PrincipalArn": "arn:aws:iam::000000000000:role/r"},
    {"AWS:principalaccount": "000000000000", "aws:PrincipalArn": "arn:aws:iam::000000000000:role/other"},
]  # fmt: skip


class Case(NamedTuple):
    policies: list[Any]
    action: str
    resource: str
    context: dict[str, Any]


def some(rng: random.Random, values: list[Any]) -> Any:
    if rng.random() < 0.6:
        return rng.choice(values)
    return [rng.choice(values) for _ in range(rng.randint(1, 3))]


def make_condition(rng: random.Random) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(rng.choice([1, 1, 2])):
        operator = rng.choice(OPERATORS)
        kind = next(kind for kind in VALUES if operator.startswith(kind) or (kind == "Ip" and "IpAddress" in operator))
        name = f"{rng.choice(['', '', '', 'ForAnyValue:', 'ForAllValues:'])}{operator}{rng.choice(['', '', 'IfExists'])}"
        if rng.random() < 0.1:
            name, kind = "Null", "Null"
        found[name] = {rng.choice(KEYS): some(rng, VALUES[kind]) for _ in range(rng.choice([1, 1, 2]))}
    return found


def make_statement(rng: random.Random) -> dict[str, Any]:
    one: dict[str, Any] = {"Effect": rng.choice(["Allow", "Allow", "Deny"])}
    one[rng.choice(["Action", "Action", "Action", "NotAction"])] = some(rng, ACTION_PATTERNS)
    one[rng.choice(["Resource", "Resource", "Resource", "NotResource"])] = some(rng, RESOURCE_PATTERNS)
    if rng.random() < 0.6:
        one["Condition"] = make_condition(rng)
    if rng.random() < 0.2:
        one[rng.choice(["Principal", "Principal", "NotPrincipal"])] = rng.choice(PRINCIPALS)
    return one


def make_policy(rng: random.Random) -> dict[str, Any]:
    statements = [make_statement(rng) for _ in range(rng.randint(1, 3))]
    policy: dict[str, Any] = {"Statement": statements[0] if len(statements) == 1 else statements}
    version = rng.choice(["2012-10-17", "2012-10-17", "2012-10-17", "2008-10-17", None])
    return policy if version is None else {"Version": version, **policy}


def make_case(rng: random.Random) -> Case:
    context = {rng.choice([key, key.lower()]): rng.choice(CONTEXT_VALUES) for key in rng.sample(KEYS, rng.randint(0, 5))}
    lower = {key.lower(): (key, value) for key, value in context.items()}  # a key comes once
    context = dict(lower.values()) | rng.choice(WHO)
    return Case([make_policy(rng) for _ in range(rng.randint(1, 2))], rng.choice(ACTIONS), rng.choice(RESOURCES), context)


JUNK: list[Any] = [
    None, 0, -1, 1e400, True, "", "x", "*", "${", "${}", "${a:b", "${a:b,'", "a:b:c", [], {}, [[]], [None], {"": {}}, {"a:b": "c"}, "\0",
    "\ud800", "arn", "arn:", "arn:::::", "ForAllValues:", "IfExists", b"x", "9" * 400, "1e9999", "2026-99-99", "1/2", "::/200", "(?",
    "[" * 50,
]  # fmt: skip


def places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    for key, below in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found.append((value, key))
        places(below, found)
    return found


def spoil(rng: random.Random, policies: list[Any]) -> list[Any]:
    """Some of it is something else, gone, or has another name."""
    spoiled = copy.deepcopy(policies)
    for _ in range(rng.randint(1, 3)):
        found = places(spoiled, [])
        if not found:
            break
        holder, key = rng.choice(found)
        how = rng.random()
        if how < 0.7:
            holder[key] = copy.deepcopy(rng.choice(JUNK))
        elif how < 0.85:
            del holder[key]
        elif isinstance(holder, dict):
            holder[rng.choice(["", "Principal", "Sid", "Null", "StringLike", "a:b", "Id", 3, key])] = holder.pop(key)
    return spoiled


class Result(NamedTuple):
    cases: int
    decisions: dict[str, int]
    refused: int


def run(seed: int, cases: int = sys.maxsize, seconds: float = sys.maxsize) -> Result:
    """Raises AssertionError with the case that shows the fault, and anything that it crashed with."""
    rng = random.Random(seed)
    end = time.monotonic() + seconds
    done = refused = 0
    decisions: dict[str, int] = {}
    while done < cases and time.monotonic() < end:
        case = make_case(rng)
        found = evaluate(*case)
        expected = plainly(*case)
        assert found == expected, f"seed {seed}, case {done}: {found}, plainly {expected}: {case!r}"
        decisions[found] = decisions.get(found, 0) + 1
        spoiled = case._replace(policies=spoil(rng, case.policies))
        try:
            found = evaluate(*spoiled)
        except PolicyError:
            refused += 1
        else:
            expected = plainly(*spoiled)
            assert found == expected, f"seed {seed}, case {done}, spoiled: {found}, plainly {expected}: {spoiled!r}"
        done += 1
    return Result(done, decisions, refused)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    print(f"seed {given.seed}: {run(given.seed, seconds=given.minutes * 60)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
