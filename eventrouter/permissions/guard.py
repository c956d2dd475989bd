"""The check that resource clients make: what the function that runs here may do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from eventrouter.clock import Clock
from eventrouter.errors import AccessDenied
from eventrouter.lineage import Cause, cause
from eventrouter.model import ACCOUNT, function_arn
from eventrouter.permissions.documents import Decision, Statement
from eventrouter.permissions.roles import Role, allow
from eventrouter.permissions.starts import INVOKE, FunctionPolicy

log = logging.getLogger("eventrouter")
_ARN = function_arn("")
UNRESTRICTED = Role("unrestricted", allow("*", "*"))  # what functions without a role have; nobody asks it


class Guard:
    """roles: of the functions that have one, by function. policies: of all. running: the function of a cause.

    denied: hears whom it has refused something.
    """

    def __init__(
        self,
        roles: Mapping[str, Role],
        policies: Mapping[str, FunctionPolicy],
        clock: Clock,
        running: Callable[[Cause], str],
        denied: Callable[[str], None],
    ) -> None:
        self.roles = roles
        self.policies = policies
        self._clock = clock
        self._running = running
        self._denied = denied

    def check(self, of: Cause, action: str, resource: str, context: Mapping[str, Any]) -> None:
        invokes = action == INVOKE
        if not self.roles and not invokes:
            return
        function = self._running(of)
        if function not in self.roles and not invokes:
            return
        decision, statement, where = self.decide(function, action, resource, context)
        if decision == "allowed":
            return
        self._denied(function)
        why = tell(self.roles.get(function), function, action, resource, decision, where)
        extra = {"action": "permission.denied", "function": function}
        log.warning("%s: %s%s", function, why, f" ({statement.place})" if statement else "", extra=extra)
        raise AccessDenied(why)

    def decide(self, function: str, action: str, resource: str, context: Mapping[str, Any] = {}) -> tuple[Decision, Statement | None, str]:
        """Whether the function may do it, by which statement, and of whose policy that is: the "identity"'s or the "resource"'s."""
        role = self.roles.get(function)
        said: tuple[Decision, Statement | None] = ("allowed", None)
        full: Mapping[str, Any] = {}
        if role is not None:
            full = context if role.fixed else self._context(function, role, context)
            said = role.decide(action, resource, full)
        target = self.policies.get(resource.removeprefix(_ARN)) if action == INVOKE and resource.startswith(_ARN) else None
        if said[0] != "explicitDeny" and target is not None and target.altered:
            theirs = target.decide(self._context(function, role, context))
            if theirs[0] == "explicitDeny" or said[0] == "implicitDeny":
                return *theirs, "identity" if theirs[0] == "implicitDeny" else "resource"
        return *said, "identity"

    def _context(self, function: str, role: Role | None, context: Mapping[str, Any]) -> dict[str, Any]:
        now = self._clock.time()
        return {
            "aws:PrincipalArn": UNRESTRICTED.arn if role is None else role.arn,
            "aws:PrincipalAccount": ACCOUNT,
            "aws:PrincipalType": "AssumedRole",
            "lambda:SourceFunctionArn": function_arn(function),
            "aws:CurrentTime": datetime.fromtimestamp(now, UTC),
            "aws:EpochTime": int(now),
            **context,
        }


def tell(role: Role | None, function: str, action: str, resource: str, decision: Decision, where: str) -> str:
    """As AWS words it."""
    who = f"arn:aws:sts::{ACCOUNT}:assumed-role/{(role or UNRESTRICTED).name}/{function}"
    why = (
        f"with an explicit deny in {'an identity' if where == 'identity' else 'a resource'}-based policy"
        if decision == "explicitDeny"
        else f"because no identity-based policy allows the {action} action"
    )
    return f'User: {who} is not authorized to perform: {action} on resource: "{resource}" {why}'


_guard: ContextVar[Guard | None] = ContextVar("eventrouter_guard", default=None)


def make_guard(guard: Guard) -> None:
    """Make it the one that `require` asks in this context and those copied from it."""
    _guard.set(guard)


def require(action: str, resource: str, context: Mapping[str, Any] = {}) -> None:
    """Raise AccessDenied unless the function that runs here may do this; for resource clients, before they do anything.

    action: as IAM names it, `"s3:GetObject"`. resource: an ARN. context: condition keys of the action's own.
    Outside of handlers (the operator, a source itself) everything is allowed.
    """
    of = cause.get()
    if of is not None:
        guard = _guard.get()
        if guard is not None:
            guard.check(of, action, resource, context)
