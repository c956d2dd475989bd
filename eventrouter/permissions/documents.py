"""Policy documents: read as IAM reads them, compiled once, and asked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from eventrouter.errors import suggest
from eventrouter.permissions.conditions import read_conditions
from eventrouter.permissions.texts import PolicyError, Request, Text, parse, read_values

Decision = Literal["allowed", "implicitDeny", "explicitDeny"]
Kind = Literal["identity", "resource", "any"]

VERSION: Final = "2012-10-17"
_DOCUMENT: Final = ("Version", "Id", "Statement")
_ELEMENTS: Final = (
    "Sid", "Effect", "Principal", "NotPrincipal", "Action", "NotAction", "Resource", "NotResource", "Condition",
)  # fmt: skip
_PRINCIPALS: Final = ("AWS", "Service", "Federated", "CanonicalUser")


class Statement:
    """One statement. source: as it was written. place: where it stands, `Statement[0]`. fixed: it asks nothing of the context."""

    __slots__ = (
        "_actions",
        "_conditions",
        "_not_action",
        "_not_resource",
        "_principal",
        "_resources",
        "allows",
        "fixed",
        "place",
        "source",
    )

    def __init__(self, source: Mapping[str, Any], place: str, kind: Kind, *, variables: bool) -> None:
        self.source = source
        self.place = place
        self._check_elements(kind)
        self.allows = source["Effect"] == "Allow"
        self._not_action = "NotAction" in source
        self._actions = [_read_action(text, where) for text, where in self._values("NotAction" if self._not_action else "Action")]
        self._not_resource = "NotResource" in source
        self._resources: list[Text] = []
        if self._not_resource or "Resource" in source:
            given = self._values("NotResource" if self._not_resource else "Resource")
            self._resources = [_read_resource(text, where, variables) for text, where in given]
        else:
            self._not_resource = True  # of a policy of one resource: that
        self._principal = self._read_principal()
        condition = source.get("Condition", {})
        self._conditions = read_conditions(condition, f"{place}.Condition", variables=variables, allows=self.allows)
        self.fixed = not self._conditions and self._principal is None and all(text.fixed for text in self._resources)

    def _check_elements(self, kind: Kind) -> None:
        source, place = self.source, self.place
        if not isinstance(source, Mapping):
            raise PolicyError(place, f"must be an object, not {type(source).__name__}")
        for name in source:
            if name not in _ELEMENTS:
                raise PolicyError(place, f"unknown element {name!r}{suggest(str(name), _ELEMENTS)}")
        if source.get("Effect") not in ("Allow", "Deny"):
            what = f"{source['Effect']!r} is neither" if "Effect" in source else "missing: write"
            raise PolicyError(f"{place}.Effect", f'{what} "Allow" {"nor" if "Effect" in source else "or"} "Deny"')
        sid = source.get("Sid", "")
        if not isinstance(sid, str) or not re.fullmatch(r"[0-9A-Za-z]*" if kind == "identity" else r"[0-9A-Za-z_-]*", sid):
            raise PolicyError(f"{place}.Sid", f"{sid!r}: statement IDs must be alpha-numeric: [0-9A-Za-z]*")
        for name in ("Action", "Resource", "Principal"):
            if name in source and f"Not{name}" in source:
                raise PolicyError(place, f"has both {name} and Not{name}; drop one of them")
        if "Action" not in source and "NotAction" not in source:
            raise PolicyError(place, "policy statement must contain actions: Action or NotAction")
        has_principal = "Principal" in source or "NotPrincipal" in source
        if kind == "identity" and has_principal:
            raise PolicyError(f"{place}.Principal", "policy document should not specify a principal: whoever has the role is it")
        if kind == "resource" and not has_principal:
            raise PolicyError(place, "missing required field Principal")
        if not has_principal and "Resource" not in source and "NotResource" not in source:
            raise PolicyError(place, "policy statement must contain resources: Resource or NotResource")

    def _values(self, name: str) -> list[tuple[str, str]]:
        path = f"{self.place}.{name}"
        given = self.source[name]
        for place, one in enumerate(given if isinstance(given, list | tuple) else ()):
            if not isinstance(one, str):
                raise PolicyError(f"{path}[{place}]", f"must be a string, not {type(one).__name__}")
        if not isinstance(given, str | list | tuple):
            raise PolicyError(path, f"must be a string or a list of strings, not {type(given).__name__}")
        return read_values(given, path)

    def _read_principal(self) -> Callable[[Request], bool] | None:
        source = self.source
        name = "NotPrincipal" if "NotPrincipal" in source else "Principal"
        if name not in source:
            return None
        given, path = source[name], f"{self.place}.{name}"
        if given == "*":
            return lambda request: name == "Principal"
        if not isinstance(given, Mapping) or not given:
            raise PolicyError(path, f'must be "*" or an object such as {{"Service": "s3.amazonaws.com"}}, not {given!r}')
        tests: list[Callable[[Request], bool]] = []
        for kind, values in given.items():
            if kind not in _PRINCIPALS:
                raise PolicyError(path, f"unknown kind of principal {kind!r}{suggest(str(kind), _PRINCIPALS)}")
            tests += [_principal(kind, text, where) for text, where in read_values(values, f"{path}.{kind}")]
        return lambda request: any(test(request) for test in tests) is (name == "Principal")

    def matches(self, request: Request) -> bool:
        """Whether it says anything of the request."""
        if any(text.matches(request.action, request) for text in self._actions) is self._not_action:
            return False
        if any(text.matches(request.resource, request) for text in self._resources) is self._not_resource:
            return False
        if self._principal is not None and not self._principal(request):
            return False
        # What isn't known can't be told from what it is not: nothing is allowed by that.
        if self.allows and self._not_resource and not all(text.resolves(request) for text in self._resources):
            return False
        return all(holds(request) for holds in self._conditions)


def _read_action(text: str, path: str) -> Text:
    if text != "*":
        service, colon, name = text.partition(":")
        if not colon:
            raise PolicyError(path, f'{text!r}: actions must be prefaced by a vendor, as in "s3:GetObject"')
        if ":" in name:
            raise PolicyError(path, f"{text!r}: actions can contain only one colon")
        if not re.fullmatch(r"[A-Za-z0-9-]+", service):
            raise PolicyError(path, f"{text!r}: vendor {service!r} is not valid; it has no wildcards")
        if not re.fullmatch(r"[A-Za-z0-9*?_-]+", name):
            raise PolicyError(path, f"{text!r}: {name!r} is no action's name")
    return Text(parse(text.lower(), path, variables=False, wild=True))


def _read_resource(text: str, path: str, variables: bool) -> Text:
    parts = parse(text, path, variables=variables, wild=True)
    if text != "*" and not (text.startswith("arn:") and (text.count(":") >= 5 or text.endswith("*"))):
        raise PolicyError(path, f'resource {text!r} must be in ARN format or "*", as in "arn:aws:s3:::uploads/*"')
    return Text(parts)


_SESSION = re.compile(r"arn:aws:sts::(\d{12}):assumed-role/([^/]+)/(.+)")


def _principal(kind: str, text: str, path: str) -> Callable[[Request], bool]:
    if text == "*" and kind == "AWS":
        return lambda request: True
    if kind == "AWS":
        account = re.fullmatch(r"(\d{12})|arn:aws:iam::(\d{12}):root", text)
        if account is not None:
            return lambda request: request.one("aws:principalaccount") == (account[1] or account[2])
        session = _SESSION.fullmatch(text)
        if session is not None:
            role = f"arn:aws:iam::{session[1]}:role/{session[2]}"
            return lambda request: (
                request.one("aws:principalarn") == role
                and (request.one("lambda:sourcefunctionarn") or "").endswith(f":{session[1]}:function:{session[3]}")
            )
        if not re.fullmatch(r"arn:[^:*?]*:[^:*?]*:[^:*?]*:[^:*?]*:[^*?]+", text):
            raise PolicyError(path, f'invalid principal {text!r}: an account, the ARN of a role, or "*"')
        return lambda request: request.one("aws:principalarn") == text
    if not text or "*" in text or (kind == "Service" and "." not in text):
        raise PolicyError(path, f'invalid principal {text!r}: it is named whole, as in "s3.amazonaws.com"')
    key = {"Service": "aws:principalservicename", "Federated": "aws:federatedprovider", "CanonicalUser": "aws:canonicaluser"}[kind]
    return lambda request: request.one(key) == text


def read_document(document: Any, kind: Kind = "any", place: str = "") -> list[Statement]:
    """The statements of a policy document. place: what paths begin with. Raises PolicyError."""
    if not isinstance(document, Mapping):
        raise PolicyError(place, f'a policy document is an object with "Version" and "Statement", not {type(document).__name__}')
    dot = f"{place}." if place else ""
    for name in document:
        if name not in _DOCUMENT:
            raise PolicyError(place, f"unknown element {name!r}{suggest(str(name), _DOCUMENT)}")
    version = document.get("Version", "2008-10-17")
    if version not in (VERSION, "2008-10-17"):
        raise PolicyError(f"{dot}Version", f'{version!r}: the policy must contain a valid version string: "{VERSION}"')
    if "Id" in document and not isinstance(document["Id"], str):
        raise PolicyError(f"{dot}Id", "must be a string")
    if "Statement" not in document:
        raise PolicyError(place, "missing required field Statement")
    given = document["Statement"]
    if not isinstance(given, Mapping | list | tuple):
        raise PolicyError(f"{dot}Statement", f"must be an object or a list of them, not {type(given).__name__}")
    many = given if isinstance(given, list | tuple) else [given]
    found = [Statement(one, f"{dot}Statement[{number}]", kind, variables=version == VERSION) for number, one in enumerate(many)]
    seen: set[str] = set()
    for statement in found:
        sid = statement.source.get("Sid")
        if sid and sid in seen:
            raise PolicyError(f"{statement.place}.Sid", f"{sid!r}: statement IDs (SID) in a single policy must be unique")
        seen.add(sid or "")
    return found


def decide(statements: Iterable[Statement], request: Request) -> tuple[Decision, Statement | None]:
    """What they say of a request, and which of them made the decision: a Deny goes before every Allow."""
    allowed: Statement | None = None
    for statement in statements:
        if (allowed is None or not statement.allows) and statement.matches(request):
            if not statement.allows:
                return "explicitDeny", statement
            allowed = statement
    return ("implicitDeny", None) if allowed is None else ("allowed", allowed)


def evaluate(policies: Sequence[Mapping[str, Any]], action: str, resource: str, context: Mapping[str, Any] = {}) -> Decision:
    """What IAM policy documents, taken together, say of an action on a resource.

    context: by condition key, in whatever letters: text, number, truth value, datetime, bytes, or a list of those. Of a policy with
    principals, whose request it is is said by `aws:PrincipalServiceName`, `aws:PrincipalArn` or `aws:PrincipalAccount`.
    Raises PolicyError, a ValueError, with the path of the fault, for what is no policy.
    """
    statements: list[Statement] = []
    for number, policy in enumerate(policies):
        statements += read_document(policy, place=f"policies[{number}]" if len(policies) > 1 else "")
    return decide(statements, Request(action, resource, context))[0]
