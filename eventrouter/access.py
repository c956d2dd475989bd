"""Who may start which function, and what each may do: kept in the journal, asked by commands, and told to the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from eventrouter.clock import Clock
from eventrouter.engine import Engine
from eventrouter.errors import ConfigError, suggest
from eventrouter.functions import Function
from eventrouter.journal.protocol import Journal
from eventrouter.model import ACCOUNT, function_arn
from eventrouter.permissions import INVOKE, FunctionPolicy, Guard, Role, make_guard, service_context

_KEPT: Final = "permissions/"  # of the journal's state, with the function's name behind it


class Access:
    """roles: of the functions that have one. sends: what a role must allow to send to a destination of that scheme: action and resource."""

    def __init__(
        self,
        functions: Mapping[str, Function],
        roles: Mapping[str, Role],
        sends: Mapping[str, tuple[str, str]],
        engine: Engine,
        journal: Journal,
        clock: Clock,
    ) -> None:
        self._functions = functions
        self._sends = sends
        self._engine = engine
        self._journal = journal
        self._policies = {name: FunctionPolicy(name, function.triggers) for name, function in functions.items()}
        self.guard = Guard(roles, self._policies, clock, engine.intake.running, self._count)

    def _count(self, function: str) -> None:
        self._engine.lanes[function].denied += 1

    def check_destination(self, function: str, place: str, scheme: str, name: str) -> None:
        """Raise ConfigError, which begins with `place`, unless the function's role lets it send there."""
        if function not in self.guard.roles or scheme not in self._sends:
            return
        action, pattern = self._sends[scheme]
        resource = pattern.format(name)
        if self.guard.decide(function, action, resource)[0] != "allowed":
            role = self.guard.roles[function]
            raise ConfigError(f'{place}: role {role.name!r} does not let it send there; add allow("{action}", "{resource}")')

    async def load(self) -> None:
        """Read what the operator has changed; `require` asks here from now on."""
        for key in await self._journal.keys(_KEPT):
            policy = self._policies.get(key.removeprefix(_KEPT))
            if policy is not None:
                policy.load(await self._journal.get(key))
        self._tell()
        make_guard(self.guard)

    def _tell(self) -> None:
        for name, policy in self._policies.items():
            self._engine.lanes[name].gate = policy.lets if policy.altered else None
        self._engine.throttling.gates_changed()

    # What commands ask

    def show(self, function: str) -> dict[str, Any]:
        """Both sides: what may start it, and what it may do."""
        policy = self._policy(function)
        role = self.guard.roles.get(function)
        may = {"role": None} if role is None else {"role": role.name, "arn": role.arn, "policies": role.policies}
        return {"function": function, "arn": policy.arn, "policy": policy.document, "removed": policy.removed, "may": may}

    async def add(self, function: str, principal: str | None, action: str, source: str, sid: str, effect: str) -> str:
        """Add a statement, or without a principal a trigger's own that was removed. Answers its Sid."""
        if principal is None:
            await self._change(function, lambda policy: policy.with_own(sid))
            return sid
        given = self._session(principal) if principal in self._functions else principal
        added: list[str] = []

        def change(policy: FunctionPolicy) -> bytes | None:
            name, kept = policy.with_statement(given, action, source, sid, effect)
            added[:] = [name]
            return kept

        await self._change(function, change)
        return added[0]

    async def remove(self, function: str, sid: str) -> None:
        await self._change(function, lambda policy: policy.without(sid))

    async def _change(self, function: str, change: Callable[[FunctionPolicy], bytes | None]) -> None:
        policy, key = self._policy(function), _KEPT + function
        while True:
            before = await self._journal.get(key)
            policy.load(before)
            kept = change(policy)
            if await self._journal.put(key, kept, expect=before):
                break
        policy.load(kept)
        self._tell()

    def simulate(
        self, function: str, action: str, resource: str, context: Mapping[str, Any], principal: str | None, source: str
    ) -> dict[str, Any]:
        """The decision, and the statement that made it. principal: of who wants to start the function; None: what the function may do."""
        policy, who = self._policy(function), function
        if principal in self._functions:
            who, action, resource, principal = principal or "", INVOKE, policy.arn, None
        if principal is None:
            if not action or not resource:
                raise ConfigError("simulate: give an ACTION and a RESOURCE, or --principal for who may start the function")
            decision, statement, where = self.guard.decide(who, action, resource, context)
        else:
            decision, statement = policy.decide({**_context_of(principal, source), **context})
            where = "resource"
        answer: dict[str, Any] = {"decision": decision, "statement": None, "by": None}
        if statement is not None:
            role = self.guard.roles.get(who)
            name = f"role {role.name}" if where == "identity" and role is not None else "a function policy"
            answer |= {"statement": statement.source, "by": f"{statement.place} of {name}"}
        elif decision == "allowed":
            answer["by"] = "no role: everything within this app"
        return answer

    def _session(self, function: str) -> str:
        role = self.guard.roles.get(function)
        return f"arn:aws:sts::{ACCOUNT}:assumed-role/{'unrestricted' if role is None else role.name}/{function}"

    def _policy(self, function: str) -> FunctionPolicy:
        try:
            return self._policies[function]
        except KeyError:
            raise ConfigError(f"no function is named {function!r}{suggest(function, self._functions)}") from None


def _context_of(principal: str, source: str) -> dict[str, Any]:
    if principal.startswith("arn:"):
        return {"aws:PrincipalArn": principal, "aws:PrincipalAccount": principal.split(":")[4], "aws:SourceArn": source or None}
    if principal.isdecimal():
        return {"aws:PrincipalAccount": principal, "aws:SourceArn": source or None}
    return service_context(principal, source)


SENDS_TO_FUNCTIONS: Final = (INVOKE, function_arn("{}"))
