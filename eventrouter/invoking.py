"""Resource clients reach the running App through the context they are called in; `invoke` is the core's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

import msgspec

from eventrouter.errors import EventRouterError, not_running
from eventrouter.model import Event, Failed, Outcome, Succeeded, TimedOut, function_arn
from eventrouter.permissions import INVOKE, require

T = TypeVar("T")


class Invoker(Protocol):
    async def run_now(self, name: str, event: Event, parameters: Mapping[str, str]) -> Outcome: ...


class Here(msgspec.Struct):
    """The running App, as code inside handlers sees it."""

    loop: asyncio.AbstractEventLoop
    invoker: Invoker


_here: ContextVar[Here] = ContextVar("eventrouter_here")


class Channel(Protocol):
    """The way to the router from a process of a function's own."""

    async def call(
        self,
        target: str,
        method: str = "",
        made: Mapping[str, Any] = {},
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = {},
        decode: Callable[[Any], Any] = ...,
    ) -> Any:
        """What the router's `target` returned, run in the name of the invocation that runs here; raises what it raised."""

    def wait(self, what: str, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine that waits for calls alone."""


_channel: Channel | None = None  # a process has one or none


def set_channel(channel: Channel) -> None:
    """Said once, in an environment."""
    global _channel
    _channel = channel


def running_channel(what: str) -> Channel:
    """In an environment; raises NotRunning, naming `what` was called, while nothing runs there."""
    if _channel is None:
        raise not_running(what)
    return _channel


class InvokeError(EventRouterError):
    """The invoked function failed. error_type: as Lambda names it."""

    def __init__(self, message: str, error_type: str) -> None:
        super().__init__(message)
        self.error_type = error_type


def make_here(here: Here) -> None:
    """Make the App the one that `invoke` finds in this context and those copied from it."""
    _here.set(here)


def here(what: str) -> Here:
    """Raises NotRunning, naming `what` was called."""
    found = _here.get(None)
    if found is None:
        raise not_running(what)
    return found


def call_from_thread(what: str, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `make()` on the router's loop and wait for it: what a client's `.sync` does in `def` handlers.

    Raises NotRunning outside a handler, EventRouterError when called on the loop itself.
    """
    if _channel is not None:  # there is nothing on a loop there but the handler that calls
        return _channel.wait(what, make)
    loop = here(what).loop
    try:
        on_loop = asyncio.get_running_loop() is loop
    except RuntimeError:
        on_loop = False
    if on_loop:
        raise EventRouterError(f"{what}: .sync would block the event loop; `await` the call without .sync")
    return asyncio.run_coroutine_threadsafe(make(), loop).result()


class _Invoke:
    """Call another function of the app and wait for its result.

    name: the function. payload: what its handler gets, as JSON; a Lambda function gets it as its event.
    parameters: values for its named wildcards.
    Returns what the handler returned. Raises InvokeError when it failed or timed out, AccessDenied, Throttled, NotRunning.
    """

    async def __call__(self, name: str, payload: Any = None, **parameters: str) -> Any:
        if _channel is not None:
            return await _channel.call("invoke", args=(name, payload), kwargs=parameters)
        require(INVOKE, function_arn(name))
        data = payload if isinstance(payload, bytes) else msgspec.json.encode(payload)
        event = Event("invoke", "lambda.invoke", name, data)
        outcome = await here(f"invoke({name!r})").invoker.run_now(name, event, parameters)
        if isinstance(outcome, Succeeded):
            return outcome.result
        if isinstance(outcome, Failed):
            raise InvokeError(f"{name}: {outcome.error_type}: {outcome.error_message}", outcome.error_type)
        if isinstance(outcome, TimedOut):
            raise InvokeError(f"{name}: Task timed out after {outcome.seconds:.2f} seconds", "Sandbox.Timedout")
        raise InvokeError(f"{name}: the router is shutting down", "Interrupted")

    def sync(self, name: str, payload: Any = None, **parameters: str) -> Any:
        """The same for `def` handlers."""
        return call_from_thread(f"invoke.sync({name!r})", lambda: self(name, payload, **parameters))


invoke = _Invoke()
