"""Function policies: who may start a function."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import msgspec

from eventrouter.errors import ConfigError, suggest
from eventrouter.model import ACCOUNT, Trigger, function_arn
from eventrouter.permissions.documents import VERSION, Decision, Statement, decide, read_document
from eventrouter.permissions.texts import PolicyError, Request

INVOKE: Final = "lambda:InvokeFunction"


class _State(msgspec.Struct, omit_defaults=True):
    """removed: of which triggers the statement is. added: the operator's statements."""

    removed: list[str] = []
    added: list[dict[str, Any]] = []


class FunctionPolicy:
    """Each trigger's own statement, less those that were removed, and those that the operator has added.

    altered: the operator has changed something; else every trigger may start the function, and nobody need be asked.
    """

    def __init__(self, function: str, triggers: Sequence[Trigger]) -> None:
        self.function = function
        self.arn = function_arn(function)
        self._triggers = triggers
        self._state = _State()
        self._statements: list[Statement] | None = None

    @property
    def altered(self) -> bool:
        return bool(self._state.removed or self._state.added)

    @cached_property
    def own(self) -> dict[str, dict[str, Any]]:
        """The triggers' statements by their Sid."""
        found: dict[str, dict[str, Any]] = {}
        for trigger in self._triggers:
            name = base = re.sub(r"[^0-9A-Za-z]+", "-", str(trigger)).strip("-")[:80] or "trigger"
            number = 1
            while name in found:
                number += 1
                name = f"{base}-{number}"
            source = trigger.arn(self.function).replace("${", "${$}{")  # it has no variables
            found[name] = self._statement(name, "Allow", {"Service": trigger.principal}, source)
        return found

    def _statement(self, sid: str, effect: str, principal: Any, source: str) -> dict[str, Any]:
        made = {"Sid": sid, "Effect": effect, "Principal": principal, "Action": INVOKE, "Resource": self.arn}
        return made | {"Condition": {"ArnLike": {"aws:SourceArn": source}}} if source else made

    @property
    def removed(self) -> list[str]:
        """Sids of triggers' statements that don't count; of what is no trigger any more, too."""
        return self._state.removed

    @property
    def document(self) -> dict[str, Any]:
        """As Lambda's GetPolicy has it."""
        own = [statement for sid, statement in self.own.items() if sid not in self._state.removed]
        return {"Version": VERSION, "Id": "default", "Statement": [*own, *self._state.added]}

    def decide(self, context: Mapping[str, Any]) -> tuple[Decision, Statement | None]:
        """What it says of who wants to start the function."""
        if self._statements is None:
            self._statements = read_document(self.document, "resource")
        return decide(self._statements, Request(INVOKE, self.arn, context))

    def lets(self, trigger: Trigger, subject: str) -> bool:
        """Whether a trigger may start the function with what is about `subject`."""
        return self.decide(service_context(trigger.principal, trigger.arn(self.function, subject)))[0] == "allowed"

    # What the operator changes; `dump` is to be kept before it holds

    def load(self, kept: bytes | None) -> None:
        self._state = _State() if kept is None else msgspec.json.decode(kept, type=_State)
        self._statements = None

    def with_statement(self, principal: str, action: str, source: str, sid: str, effect: str) -> tuple[str, bytes | None]:
        """Its Sid, and what is to be kept. principal: `s3.amazonaws.com`, an ARN, an account or "*". Raises ConfigError."""
        added = self._state.added
        taken = {*self.own, *(one["Sid"] for one in added)}
        if not sid:
            sid = next(name for number in range(1, len(taken) + 2) if (name := f"statement-{number}") not in taken)
        if sid in taken:
            raise ConfigError(f"{self.function}: there is a statement {sid!r} already; remove it first, or give another --sid")
        kind = "AWS" if principal == "*" or principal.isdecimal() or principal.startswith("arn:") else "Service"
        made = self._statement(sid, effect, "*" if principal == "*" else {kind: principal}, source) | {"Action": action}
        try:
            read_document({"Version": VERSION, "Statement": [made]}, "resource")
        except PolicyError as error:
            raise ConfigError(f"{self.function}: {error}") from None
        return sid, _dump(_State(self._state.removed, [*added, made]))

    def with_own(self, sid: str) -> bytes | None:
        """What is to be kept when a trigger's statement counts again. Raises ConfigError."""
        if sid not in self._state.removed:
            raise ConfigError(f"{self.function}: no trigger's statement {sid!r} was removed{suggest(sid, self._state.removed)}")
        return _dump(_State([one for one in self._state.removed if one != sid], self._state.added))

    def without(self, sid: str) -> bytes | None:
        """What is to be kept when a statement is taken out. Raises ConfigError."""
        added = [one for one in self._state.added if one["Sid"] != sid]
        if len(added) < len(self._state.added):
            return _dump(_State(self._state.removed, added))
        present = [one for one in self.own if one not in self._state.removed]
        if sid not in present:
            raise ConfigError(f"{self.function}: there is no statement {sid!r}{suggest(sid, [*present, *(s['Sid'] for s in added)])}")
        return _dump(_State([*self._state.removed, sid], added))


def _dump(state: _State) -> bytes | None:
    return msgspec.json.encode(state) if state.removed or state.added else None


def service_context(principal: str, source: str) -> dict[str, Any]:
    """Whose request it is when a source starts a function."""
    return {"aws:PrincipalServiceName": principal, "aws:SourceArn": source or None, "aws:SourceAccount": ACCOUNT}
