"""Who may start a function, and what a function may do: AWS's IAM, as far as it concerns them."""

from eventrouter.permissions.documents import evaluate
from eventrouter.permissions.guard import Guard, make_guard, require
from eventrouter.permissions.roles import Role, allow, deny, role_of
from eventrouter.permissions.starts import INVOKE, FunctionPolicy, service_context
from eventrouter.permissions.texts import PolicyError

__all__ = [
    "INVOKE",
    "FunctionPolicy",
    "Guard",
    "PolicyError",
    "Role",
    "allow",
    "deny",
    "evaluate",
    "make_guard",
    "require",
    "role_of",
    "service_context",
]
