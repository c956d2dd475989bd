"""Policy documents: what is refused, and what they decide. `tests/fuzz/policies.py` holds many more against another evaluator."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from eventrouter import Role, allow, deny
from eventrouter.errors import ConfigError
from eventrouter.functions import make_policy
from eventrouter.model import Event
from eventrouter.permissions import FunctionPolicy, PolicyError, evaluate
from support import local

OBJECT = "arn:aws:s3:::uploads/a"


def policy(*statements: Any, **more: Any) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements), **more}


def statement(**elements: Any) -> dict[str, Any]:
    made = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*", **elements}
    return {name: value for name, value in made.items() if value is not None}


def when(condition: Any, **context: Any) -> str:
    return evaluate([policy(statement(Condition=condition))], "s3:GetObject", OBJECT, {k.replace("_", ":"): v for k, v in context.items()})


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ([], "a policy document is an object"),
        ({"Version": "2012-10-17"}, "missing required field Statement"),
        (policy(Statements=[]), "unknown element 'Statements'; did you mean 'Statement'?"),
        ({"Version": "2013-01-01", "Statement": []}, "Version: '2013-01-01': the policy must contain a valid version string"),
        ({"Version": ["2012-10-17"], "Statement": []}, "Version: ['2012-10-17']: the policy must"),
        (policy(Id=3), "Id: must be a string"),
        ({"Statement": "x"}, "Statement: must be an object or a list of them, not str"),
        (policy(3), "Statement[0]: must be an object, not int"),
        (policy(statement(Acton="*")), "Statement[0]: unknown element 'Acton'; did you mean 'Action'?"),
        (policy(statement(), statement(Effect="allow")), 'Statement[1].Effect: \'allow\' is neither "Allow" nor "Deny"'),
        (policy(statement(Effect=None)), 'Statement[0].Effect: missing: write "Allow" or "Deny"'),
        (policy(statement(Effect=["Allow"])), "Statement[0].Effect: ['Allow'] is neither"),
        (policy(statement(Sid="a b")), "Statement[0].Sid: 'a b': statement IDs must be alpha-numeric"),
        (policy(statement(Sid="a"), statement(Sid="a")), "Statement[1].Sid: 'a': statement IDs (SID) in a single policy must be unique"),
        (policy(statement(Action=None)), "Statement[0]: policy statement must contain actions"),
        (policy(statement(NotAction="s3:*")), "Statement[0]: has both Action and NotAction"),
        (policy(statement(Action=[])), "Statement[0].Action: has no value"),
        (policy(statement(Action=["*", 3])), "Statement[0].Action[1]: must be a string, not int"),
        (policy(statement(Action={})), "Statement[0].Action: must be a string or a list of strings, not dict"),
        (policy(statement(Action="s3GetObject")), "Statement[0].Action: 's3GetObject': actions must be prefaced by a vendor"),
        (policy(statement(Action="s3:Get:Object")), "Statement[0].Action: 's3:Get:Object': actions can contain only one colon"),
        (policy(statement(Action="s*:Get")), "Statement[0].Action: 's*:Get': vendor 's*' is not valid"),
        (policy(statement(Action="s3:Get Object")), "Statement[0].Action: 's3:Get Object': 'Get Object' is no action's name"),
        (policy(statement(Resource=None)), "Statement[0]: policy statement must contain resources"),
        (policy(statement(NotResource="*")), "Statement[0]: has both Resource and NotResource"),
        (policy(statement(Resource=["*", "uploads"])), "Statement[0].Resource[1]: resource 'uploads' must be in ARN format or \"*\""),
        (
            policy(statement(Resource="arn:aws:s3:::${aws:username")),
            "Statement[0].Resource: 'arn:aws:s3:::${aws:username': a variable has no",
        ),
        (policy(statement(Resource="arn:aws:s3:::${name}")), "'${name}' is no policy variable"),
        (policy(statement(Principal="someone")), 'Statement[0].Principal: must be "*" or an object'),
        (policy(statement(Principal={"Svc": "x"})), "Statement[0].Principal: unknown kind of principal 'Svc'"),
        (policy(statement(Principal={"Service": "s3*"})), "Statement[0].Principal.Service: invalid principal 's3*'"),
        (policy(statement(Principal={"AWS": ["*", "me"]})), "Statement[0].Principal.AWS[1]: invalid principal 'me'"),
        (policy(statement(Condition=[])), "Statement[0].Condition: must be an object"),
        (
            policy(statement(Condition={"StringEqual": {"a:b": "c"}})),
            "Statement[0].Condition.StringEqual: invalid condition type; did you mean",
        ),
        (policy(statement(Condition={"ForAny:StringEquals": {"a:b": "c"}})), "Condition.ForAny:StringEquals: invalid condition type"),
        (policy(statement(Condition={"NullIfExists": {"a:b": "true"}})), "Condition.NullIfExists: invalid condition type"),
        (policy(statement(Condition={"Bool": {}})), "Statement[0].Condition.Bool: must be an object of condition keys"),
        (policy(statement(Condition={"Bool": {"key": "true"}})), "Condition.Bool.key: condition keys must be prefaced by a vendor"),
        (policy(statement(Condition={"Bool": {"a:b": "yes"}})), "Statement[0].Condition.Bool.a:b: 'yes' is neither"),
        (policy(statement(Condition={"Null": {"a:b": "yes"}})), "Statement[0].Condition.Null.a:b: 'yes' is neither"),
        (
            policy(statement(Condition={"Bool": {"a:b": ["true", None]}})),
            "Condition.Bool.a:b[1]: must be a string, a number or a truth value",
        ),
        (policy(statement(Condition={"NumericEquals": {"a:b": "many"}})), "Condition.NumericEquals.a:b: 'many' is no number"),
        (policy(statement(Condition={"NumericEquals": {"a:b": "NaN"}})), "'NaN' is no number"),
        (policy(statement(Condition={"DateEquals": {"a:b": "2026-13-01"}})), "Condition.DateEquals.a:b: '2026-13-01' is no date"),
        (policy(statement(Condition={"IpAddress": {"a:b": "10.0.0.0/33"}})), "Condition.IpAddress.a:b: '10.0.0.0/33' is no IP address"),
        (policy(statement(Condition={"BinaryEquals": {"a:b": "?"}})), "Condition.BinaryEquals.a:b: '?' is not base64"),
        (policy(statement(Condition={"ArnLike": {"a:b": "bucket"}})), "Condition.ArnLike.a:b: must be an ARN"),
    ],
)
def test_what_is_no_policy(document: Any, fault: str) -> None:
    with pytest.raises(PolicyError) as caught:
        evaluate([document], "s3:GetObject", OBJECT)
    assert fault in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_of_several_the_fault_is_placed() -> None:
    with pytest.raises(PolicyError, match=r"^policies\[1\]\.Statement\[0\]\.Effect: "):
        evaluate([policy(statement()), policy(statement(Effect="x"))], "s3:GetObject", OBJECT)


@pytest.mark.parametrize(
    ("statements", "decision"),
    [
        ([], "implicitDeny"),
        ([statement()], "allowed"),
        ([statement(Action="S3:getOBJECT")], "allowed"),
        ([statement(Action="s3:Get?bject")], "allowed"),
        ([statement(Action=["sqs:*", "s3:*Object"])], "allowed"),
        ([statement(Action="s3:Put*")], "implicitDeny"),
        ([statement(Action=None, NotAction="s3:PutObject")], "allowed"),
        ([statement(Action=None, NotAction="s3:*")], "implicitDeny"),
        ([statement(Resource="arn:aws:s3:::uploads/*")], "allowed"),
        ([statement(Resource="arn:aws:s3:::Uploads/*")], "implicitDeny"),
        ([statement(Resource="arn:aws:s3:::uploads")], "implicitDeny"),
        ([statement(Resource=None, NotResource="arn:aws:s3:::uploads/b")], "allowed"),
        ([statement(Resource=None, NotResource=["arn:aws:s3:::x", "arn:aws:s3:::uploads/?"])], "implicitDeny"),
        ([statement(), statement(Effect="Deny", Resource="arn:aws:s3:::uploads/b")], "allowed"),
        ([statement(Effect="Deny", Resource="arn:aws:s3:::*/a"), statement()], "explicitDeny"),
        ([statement(Effect="Deny")], "explicitDeny"),
    ],
)
def test_decisions(statements: list[Any], decision: str) -> None:
    assert evaluate([policy(*statements)], "s3:GetObject", OBJECT) == decision
    assert evaluate([policy(one) for one in statements], "s3:GetObject", OBJECT) == decision, "in documents of their own"
    if len(statements) == 1:
        assert evaluate([{"Version": "2012-10-17", "Statement": statements[0]}], "s3:GetObject", OBJECT) == decision


def test_a_text_without_end_is_matched_in_no_time() -> None:
    of = policy(statement(Resource="arn:aws:s3:::" + "*a" * 40 + "b"))
    assert evaluate([of], "s3:GetObject", "arn:aws:s3:::" + "a" * 5000) == "implicitDeny"


def test_variables() -> None:
    home = policy(statement(Resource="arn:aws:s3:::home/${aws:username}/*"))
    assert evaluate([home], "s3:GetObject", "arn:aws:s3:::home/ann/x", {"AWS:UserName": "ann"}) == "allowed"
    assert evaluate([home], "s3:GetObject", "arn:aws:s3:::home/bob/x", {"aws:username": "ann"}) == "implicitDeny"
    assert evaluate([home], "s3:GetObject", "arn:aws:s3:::home/bob/x", {"aws:username": "*"}) == "implicitDeny", "a value has no wildcards"
    assert evaluate([home], "s3:GetObject", "arn:aws:s3:::home//x") == "implicitDeny"
    assert evaluate([home], "s3:GetObject", "arn:aws:s3:::home/ann/x", {"aws:username": ["ann", "bob"]}) == "implicitDeny"
    default = policy(statement(Resource="arn:aws:s3:::home/${aws:username, 'guest'}/*"))
    assert evaluate([default], "s3:GetObject", "arn:aws:s3:::home/guest/x") == "allowed"
    star = policy(statement(Resource="arn:aws:s3:::${*}${$}${?}"))
    assert evaluate([star], "s3:GetObject", "arn:aws:s3:::*$?") == "allowed"
    assert evaluate([star], "s3:GetObject", "arn:aws:s3:::a$?") == "implicitDeny"
    old = home | {"Version": "2008-10-17"}
    assert evaluate([old], "s3:GetObject", "arn:aws:s3:::home/${aws:username}/x", {"aws:username": "ann"}) == "allowed", "it knows none"


def test_what_a_variable_without_a_value_leaves_open_is_not_allowed() -> None:
    others = policy(statement(Resource=None, NotResource="arn:aws:s3:::home/${aws:username}"))
    assert evaluate([others], "s3:GetObject", "arn:aws:s3:::home/bob") == "implicitDeny"
    assert evaluate([others], "s3:GetObject", "arn:aws:s3:::home/bob", {"aws:username": "ann"}) == "allowed"
    assert when({"StringNotEquals": {"s3:prefix": "${aws:username}"}}, s3_prefix="x") == "implicitDeny"
    no = [policy(statement()), policy(statement(Effect="Deny", Condition={"StringNotEquals": {"s3:prefix": "${aws:username}"}}))]
    assert evaluate(no, "s3:GetObject", OBJECT, {"s3:prefix": "x"}) == "explicitDeny"


NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("operator", "wanted", "holds", "fails"),
    [
        ("StringEquals", ["a", "b"], ["a", "b"], ["A", "", "ab", "*"]),
        ("StringNotEquals", ["a", "b"], ["A", "ab"], ["a", "b"]),
        ("StringEqualsIgnoreCase", "Ab", ["aB"], ["a"]),
        ("StringNotEqualsIgnoreCase", "Ab", ["a"], ["aB"]),
        ("StringLike", ["a*", "?"], ["a", "abc", "x"], ["xy", ""]),
        ("StringNotLike", "a*", ["b"], ["abc"]),
        ("NumericEquals", "10", [10, "10.0", 10.0, "1e1"], ["ten", 11, "nan"]),
        ("NumericNotEquals", 10, [11, "ten"], ["10"]),
        ("NumericLessThan", "10", [9, "-1"], [10, "x"]),
        ("NumericLessThanEquals", "10", [10], [10.5]),
        ("NumericGreaterThan", "9007199254740993", ["9007199254740994"], ["9007199254740993"]),
        ("NumericGreaterThanEquals", "10", [10], [9]),
        ("DateEquals", "2026-05-01T12:00:00Z", [NOW, "2026-05-01T14:00:00+02:00", int(NOW.timestamp())], ["2026-05-01", "soon"]),
        ("DateNotEquals", "2026-05-01", ["2026-05-02"], ["2026-05-01T00:00:00"]),
        ("DateLessThan", "2026-05-01", ["2026-04-30T23:59:59Z"], [NOW]),
        ("DateLessThanEquals", "2026-05-01", ["2026-05-01"], [NOW]),
        ("DateGreaterThan", "1767225600", [NOW], ["2025-12-31"]),
        ("DateGreaterThanEquals", "2026-05-01T12:00:00Z", [NOW], ["2026-05-01"]),
        ("Bool", "true", [True, "true", "TRUE"], [False, "false", "yes", 1]),
        ("BinaryEquals", "YWI=", [b"ab", "YWI="], [b"a", "ab"]),
        ("IpAddress", ["10.0.0.0/8", "2001:db8::/32"], ["10.9.8.7", "2001:db8::7"], ["11.0.0.1", "::1", "10.0.0.0/9", "host"]),
        ("NotIpAddress", "10.0.0.0/8", ["11.0.0.1", "::1"], ["10.1.1.1"]),
        ("ArnLike", "arn:aws:sns:*:*:a*", ["arn:aws:sns:local:0:ab:c"], ["arn:aws:sns:local:0:b", "arn:aws:sns:x", "a"]),
        ("ArnEquals", "arn:aws:s3:::*", ["arn:aws:s3:::b"], ["arn:aws:s3:local::b"]),
        ("ArnLike", "arn:aws:s3*", ["arn:aws:s3:local::b"], ["arn:aws:sns:::b"]),
        ("ArnNotLike", "arn:aws:s3:::a", ["arn:aws:s3:::b", "x"], ["arn:aws:s3:::a"]),
        ("ArnNotEquals", "arn:aws:s3:::a", ["arn:aws:s3:::b"], ["arn:aws:s3:::a"]),
    ],
)
def test_operators(operator: str, wanted: Any, holds: list[Any], fails: list[Any]) -> None:
    for value in holds:
        assert when({operator: {"x:k": wanted}}, x_k=value) == "allowed", value
        assert when({f"{operator}IfExists": {"X:K": wanted}}, x_k=value) == "allowed", value
    for value in fails:
        assert when({operator: {"x:k": wanted}}, x_k=value) == "implicitDeny", value
    assert when({operator: {"x:k": wanted}}) == ("allowed" if "Not" in operator else "implicitDeny"), "no such key"
    assert when({f"{operator}IfExists": {"x:k": wanted}}) == "allowed"


def test_sets() -> None:
    any_value, all_values = {"ForAnyValue:StringEquals": {"x:k": ["a", "b"]}}, {"ForAllValues:StringEquals": {"x:k": ["a", "b"]}}
    none_of = {"ForAllValues:StringNotEquals": {"x:k": ["a", "b"]}}
    table = {(): (0, 1, 1), ("a",): (1, 1, 0), ("a", "b"): (1, 1, 0), ("a", "c"): (1, 0, 0), ("c", "d"): (0, 0, 1)}
    for values, expected in table.items():
        found = tuple(int(when(condition, x_k=list(values)) == "allowed") for condition in (any_value, all_values, none_of))
        assert found == expected, values
    assert when(all_values) == "allowed"
    assert when(any_value) == "implicitDeny"
    assert when({"ForAnyValue:StringNotEquals": {"x:k": "a"}}) == "implicitDeny"
    assert when({"ForAnyValue:StringNotEquals": {"x:k": "a"}}, x_k=["a", "b"]) == "allowed"


def test_null_and_all_conditions_together() -> None:
    assert when({"Null": {"x:k": "true"}}) == when({"Null": {"x:k": False}}, x_k="a") == "allowed"
    assert when({"Null": {"x:k": "true"}}, x_k="a") == when({"Null": {"x:k": "false"}}) == "implicitDeny"
    both = {"StringEquals": {"x:k": "a", "x:l": "b"}, "Bool": {"x:m": "true"}}
    assert when(both, x_k="a", x_l="b", x_m=True) == "allowed"
    assert when(both, x_k="a", x_l="b", x_m=False) == when(both, x_k="a", x_m=True) == "implicitDeny"


ROLE_ARN = "arn:aws:iam::000000000000:role/r"


@pytest.mark.parametrize(
    ("principal", "context", "is_it"),
    [
        ("*", {}, True),
        ({"AWS": "*"}, {"aws:PrincipalServiceName": "s3.amazonaws.com"}, True),
        ({"Service": ["sns.amazonaws.com", "s3.amazonaws.com"]}, {"aws:PrincipalServiceName": "s3.amazonaws.com"}, True),
        ({"Service": "s3.amazonaws.com"}, {"aws:PrincipalArn": ROLE_ARN}, False),
        ({"AWS": ROLE_ARN}, {"aws:PrincipalArn": ROLE_ARN}, True),
        ({"AWS": "000000000000"}, {"aws:PrincipalAccount": "000000000000"}, True),
        ({"AWS": "arn:aws:iam::000000000001:root"}, {"aws:PrincipalAccount": "000000000000"}, False),
        (
            {"AWS": "arn:aws:sts::000000000000:assumed-role/r/f"},
            {"aws:PrincipalArn": ROLE_ARN, "lambda:SourceFunctionArn": "arn:aws:lambda:local:000000000000:function:f"},
            True,
        ),
        ({"AWS": "arn:aws:sts::000000000000:assumed-role/r/f"}, {"aws:PrincipalArn": ROLE_ARN}, False),
        ({"Federated": "accounts.example.com"}, {"aws:FederatedProvider": "accounts.example.com"}, True),
    ],
)
def test_principals(principal: Any, context: dict[str, Any], is_it: bool) -> None:
    assert evaluate([policy(statement(Principal=principal))], "s3:GetObject", OBJECT, context) == ("allowed" if is_it else "implicitDeny")
    negated = evaluate([policy(statement(NotPrincipal=principal))], "s3:GetObject", OBJECT, context)
    assert negated == ("implicitDeny" if is_it else "allowed")


# Roles


def test_a_role_is_a_readable_spelling_of_a_policy() -> None:
    role = Role(
        "ingest",
        allow(["s3:GetObject", "s3:PutObject"], "arn:aws:s3:::a/*", "arn:aws:s3:::b/*", sid="Objects"),
        deny("s3:*", "arn:aws:s3:::a/secret/*", when={"Bool": {"x:k": "false"}}),
    )
    assert role.policies == [
        policy(
            {"Sid": "Objects", "Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject"],
             "Resource": ["arn:aws:s3:::a/*", "arn:aws:s3:::b/*"]},
            {"Effect": "Deny", "Action": "s3:*", "Resource": "arn:aws:s3:::a/secret/*", "Condition": {"Bool": {"x:k": "false"}}},
        )
    ]  # fmt: skip
    assert role == Role("ingest", role.policies[0]), "which may be given as it is, too"
    assert role.decide("s3:GetObject", "arn:aws:s3:::a/secret/x", {})[0] == "allowed"
    decision, made_by = role.decide("s3:GetObject", "arn:aws:s3:::a/secret/x", {"x:k": False})
    assert (decision, made_by and made_by.place) == ("explicitDeny", "Statement[1]")
    assert Role("none").decide("s3:GetObject", OBJECT, {}) == ("implicitDeny", None)


def test_what_a_role_remembers_is_bounded() -> None:
    role = Role("r", allow("s3:GetObject", "arn:aws:s3:::a/*"))
    for number in range(10_000):
        assert role.decide("s3:GetObject", f"arn:aws:s3:::{'ab'[number % 2]}/{number}", {})[0] == (
            "implicitDeny" if number % 2 else "allowed"
        )
    assert len(role._known) <= 4096


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (lambda: Role("a b"), "Role('a b'): a name has 1 to 64 of"),
        (lambda: Role("r", allow("s3:GetObject")), "Role('r'): Statement[0].Resource: has no value"),
        (lambda: Role("r", allow("GetObject", "*")), "Role('r'): Statement[0].Action: 'GetObject': actions must be prefaced by a vendor"),
        (lambda: Role("r", policy(statement(Principal="*"))), "Statement[0].Principal: policy document should not specify a principal"),
        (lambda: make_policy({"role": "admin"}, "app.py:3"), "app.py:3: role: 'admin' is no role; write Role("),
        (lambda: make_policy({"role": policy(statement(Effect="x"))}, "app.py:3"), "app.py:3: role: Statement[0].Effect: 'x' is neither"),
        (lambda: make_policy({"role": []}, "app.py:3"), "app.py:3: role: [] is no role"),
    ],
)
def test_what_is_no_role(given: Any, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        given()
    assert fault in str(caught.value)


def test_a_keyword_takes_documents() -> None:
    assert make_policy({"role": policy(statement())}, "x", "f").role == Role("f", policy(statement()))
    assert make_policy({"role": [policy(statement()), policy()]}, "x", "f").role == Role("f", policy(statement()), policy())
    assert make_policy({"role": "none"}, "x").role == Role("none")
    assert make_policy({}, "x").role is None


# Function policies


def test_each_trigger_has_a_statement_and_they_are_told_apart() -> None:
    made = FunctionPolicy("f", [local("a/{x}"), local("a/{x}"), local("${weird}*")])
    assert list(made.own) == ["local-a-x", "local-a-x-2", "local-weird"]
    assert made.own["local-a-x"] == {
        "Sid": "local-a-x",
        "Effect": "Allow",
        "Principal": {"Service": "local.eventrouter"},
        "Action": "lambda:InvokeFunction",
        "Resource": "arn:aws:lambda:local:000000000000:function:f",
        "Condition": {"ArnLike": {"aws:SourceArn": "arn:aws:local:local:000000000000:local%20a/%7Bx%7D"}},
    }
    assert all(made.lets(trigger, "a/1") for trigger in (local("a/{x}"), local("${weird}*")))
    assert not made.lets(local("other"), "other")
    assert not made.altered


def test_what_an_operator_changes_can_be_kept_and_read() -> None:
    made, event = FunctionPolicy("f", [local("a")]), Event("local", "local.put", "a")
    made.load(made.without("local-a"))
    assert (made.altered, made.removed, made.document["Statement"]) == (True, ["local-a"], [])
    assert not made.lets(local("a"), event.subject)
    sid, kept = made.with_statement("local.eventrouter", "lambda:InvokeFunction", "", "", "Allow")
    made.load(kept)
    assert (sid, made.lets(local("a"), event.subject)) == ("statement-1", True)
    made.load(made.with_statement("*", "lambda:*", "", "no", "Deny")[1])
    assert not made.lets(local("a"), event.subject)
    for left in ("no", "statement-1"):
        made.load(made.without(left))
    assert made.with_own("local-a") is None, "as it was at first"
    for wrong in (
        lambda: made.without("x"),
        lambda: made.with_own("x"),
        lambda: made.with_statement("s3", "lambda:InvokeFunction", "", "", "Allow"),
        lambda: made.with_statement("*", "x", "", "", "Allow"),
        lambda: made.with_statement("*", "lambda:InvokeFunction", "bucket", "", "Allow"),
        lambda: made.with_statement("*", "lambda:InvokeFunction", "", "a b", "Allow"),
        lambda: made.with_statement("*", "lambda:InvokeFunction", "", "local-a", "Allow"),
    ):
        with pytest.raises(ConfigError, match="^f: "):
            wrong()
