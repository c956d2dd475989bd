"""AWS Lambda's event model on any machine: handlers, triggers, durable delivery."""

from eventrouter.app import App
from eventrouter.batches import Batch, PartialFailure
from eventrouter.binding import Depends
from eventrouter.clock import Clock
from eventrouter.config import seconds
from eventrouter.destinations import Message
from eventrouter.errors import EventRouterError, Reject, Retry
from eventrouter.functions import Idempotent, on, on_start, on_stop
from eventrouter.hookspecs import Finding, Plugin, hookimpl
from eventrouter.invoking import call_from_thread, invoke
from eventrouter.journal.protocol import QueueDepth, Received
from eventrouter.model import (
    Context,
    Event,
    Failed,
    HttpRequest,
    Interrupted,
    Notice,
    Outcome,
    Part,
    Response,
    Succeeded,
    TimedOut,
    Trigger,
    Wild,
    new_id,
)
from eventrouter.network import Network, egress
from eventrouter.paths import json_path
from eventrouter.permissions import Role, allow, deny
from eventrouter.retry import delays, exponential, fixed, lambda_
from eventrouter.secrets import Secret
from eventrouter.sources import Binding, Endpoint, Health, Queue, Router, Source, Standing, Terms
from eventrouter.wildcards import Wildcards

__version__ = "0.1.0"

__all__ = [
    "App",
    "Batch",
    "Binding",
    "Clock",
    "Context",
    "Depends",
    "Endpoint",
    "Event",
    "EventRouterError",
    "Failed",
    "Finding",
    "Health",
    "HttpRequest",
    "Idempotent",
    "Interrupted",
    "Message",
    "Network",
    "Notice",
    "Outcome",
    "Part",
    "PartialFailure",
    "Plugin",
    "Queue",
    "QueueDepth",
    "Received",
    "Reject",
    "Response",
    "Retry",
    "Role",
    "Router",
    "Secret",
    "Source",
    "Standing",
    "Succeeded",
    "Terms",
    "TimedOut",
    "Trigger",
    "Wild",
    "Wildcards",
    "allow",
    "call_from_thread",
    "delays",
    "deny",
    "egress",
    "exponential",
    "fixed",
    "hookimpl",
    "invoke",
    "json_path",
    "lambda_",
    "new_id",
    "on",
    "on_start",
    "on_stop",
    "seconds",
]
