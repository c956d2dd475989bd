"""AWS Lambda's event model on any machine: handlers, triggers, durable delivery."""

from eventrouter.binding import Depends
from eventrouter.clock import Clock
from eventrouter.errors import EventRouterError, Reject, Retry
from eventrouter.functions import on, on_start, on_stop
from eventrouter.hookspecs import Finding, Plugin, hookimpl
from eventrouter.model import Context, Event, Failed, Response, Succeeded, TimedOut, Trigger, Wild
from eventrouter.retry import exponential, fixed, lambda_
from eventrouter.sources import Binding, Router, Source

__version__ = "0.1.0"
