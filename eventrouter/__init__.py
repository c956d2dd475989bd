"""AWS Lambda's event model on any machine: handlers, triggers, durable delivery."""

from eventrouter.app import App
from eventrouter.binding import Depends
from eventrouter.clock import Clock
from eventrouter.errors import EventRouterError, Reject, Retry
from eventrouter.functions import on, on_start, on_stop
from eventrouter.hookspecs import Finding, Plugin, hookimpl
from eventrouter.invoking import call_from_thread, invoke
from eventrouter.model import Context, Event, Failed, Interrupted, Outcome, Response, Succeeded, TimedOut, Trigger, Wild
from eventrouter.retry import exponential, fixed, lambda_
from eventrouter.sources import Binding, Health, Router, Source
from eventrouter.wildcards import Wildcards

__version__ = "0.1.0"

__all__ = [
    "App",
    "Binding",
    "Clock",
    "Context",
    "Depends",
    "Event",
    "EventRouterError",
    "Failed",
    "Finding",
    "Health",
    "Interrupted",
    "Outcome",
    "Plugin",
    "Reject",
    "Response",
    "Retry",
    "Router",
    "Source",
    "Succeeded",
    "TimedOut",
    "Trigger",
    "Wild",
    "Wildcards",
    "call_from_thread",
    "exponential",
    "fixed",
    "hookimpl",
    "invoke",
    "lambda_",
    "on",
    "on_start",
    "on_stop",
]
