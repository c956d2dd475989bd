"""Execution roles: what a function may do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from eventrouter.errors import BadOption
from eventrouter.model import ACCOUNT
from eventrouter.permissions.documents import VERSION, Decision, Statement, decide, read_document
from eventrouter.permissions.texts import PolicyError, Request

_KNOWN: Final = 4096  # decisions of a role that are kept; what is asked for comes from outside


def allow(actions: str | Sequence[str], *resources: str, when: Mapping[str, Any] | None = None, sid: str = "") -> dict[str, Any]:
    """A statement that allows actions on resources: `allow("s3:GetObject", "arn:aws:s3:::uploads/*")`.

    when: IAM's Condition block.
    """
    return _statement("Allow", actions, resources, when, sid)


def deny(actions: str | Sequence[str], *resources: str, when: Mapping[str, Any] | None = None, sid: str = "") -> dict[str, Any]:
    """As `allow`, for what is denied whatever else allows it."""
    return _statement("Deny", actions, resources, when, sid)


def _statement(effect: str, actions: Any, resources: Sequence[str], when: Mapping[str, Any] | None, sid: str) -> dict[str, Any]:
    made: dict[str, Any] = {"Sid": sid} if sid else {}
    made |= {"Effect": effect, "Action": actions, "Resource": resources[0] if len(resources) == 1 else list(resources)}
    return made if when is None else made | {"Condition": dict(when)}


class Role:
    """`Role("ingest", allow("s3:GetObject", "arn:aws:s3:::uploads/*"))`: what a function with `role=` may do, and nothing else.

    statements: as `allow` and `deny` make them, or IAM's own; whole policy documents, too. Without any, it may do nothing.
    Raises a ConfigError, which is a ValueError, with the path of the fault.
    """

    __slots__ = ("_known", "arn", "fixed", "name", "policies", "statements")

    def __init__(self, name: str, *statements: Mapping[str, Any]) -> None:
        if not re.fullmatch(r"[\w+=,.@-]{1,64}", name, re.ASCII):
            raise BadOption(f"Role({name!r}): a name has 1 to 64 of letters, digits and +=,.@_-")
        self.name = name
        self.arn = f"arn:aws:iam::{ACCOUNT}:role/{name}"
        single = [one for one in statements if not _is_document(one)]
        own = [{"Version": VERSION, "Statement": single}] if single else []
        self.policies = [*own, *(dict(one) for one in statements if _is_document(one))]
        self.statements: list[Statement] = []
        try:
            for number, policy in enumerate(self.policies):
                self.statements += read_document(policy, "identity", f"policies[{number}]" if len(self.policies) > 1 else "")
        except PolicyError as error:
            raise BadOption(f"Role({name!r}): {error}") from None
        self.fixed = all(statement.fixed for statement in self.statements)
        self._known: dict[tuple[str, str], tuple[Decision, Statement | None]] = {}

    def decide(self, action: str, resource: str, context: Mapping[str, Any]) -> tuple[Decision, Statement | None]:
        """As `documents.decide`; remembered, where the context has no say in it."""
        if not self.fixed:
            return decide(self.statements, Request(action, resource, context))
        found = self._known.get((action, resource))
        if found is None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            found = self._known[action, resource] = decide(self.statements, Request(action, resource, {}))
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Role) and (self.name, self.policies) == (other.name, other.policies)

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"Role({self.name!r})"


def _is_document(one: Any) -> bool:
    return isinstance(one, Mapping) and ("Statement" in one or "Version" in one)


def role_of(given: Any, function: str) -> Role:
    """What `role=` says: a Role, an IAM policy document or several, or "none". function: whose it is. Raises ConfigError."""
    if isinstance(given, Role):
        return given
    if given == "none":
        return Role("none")
    documents = given if isinstance(given, list | tuple) else [given]
    if not documents or not all(isinstance(one, Mapping) for one in documents):
        raise BadOption(f'{given!r} is no role; write Role("{function}", allow(...)), an IAM policy document, or "none"')
    name = re.sub(r"[^\w+=,.@-]", "-", function, flags=re.ASCII)[:64] or "role"
    documents = [one if _is_document(one) else {"Version": VERSION, "Statement": one} for one in documents]
    try:
        return Role(name, *documents)
    except BadOption as error:
        raise BadOption(str(error).removeprefix(f"Role({name!r}): ")) from None
