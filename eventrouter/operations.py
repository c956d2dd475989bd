"""What the command line can ask of an App."""

from __future__ import annotations

import asyncio
import inspect
import io
import logging
import os
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from eventrouter.attempts import describe
from eventrouter.audit import Query, Who
from eventrouter.config import FILE, seconds
from eventrouter.errors import ConfigError, EventRouterError, explain, suggest
from eventrouter.functions import Function
from eventrouter.journal.protocol import Letter, LetterQuery
from eventrouter.logs import Log, Recent, captured, current, logger
from eventrouter.model import Event, Failed, Succeeded, TimedOut, iso_time, new_id
from eventrouter.replay import replay
from eventrouter.throttling import NOTHING_SET, Setting, Throttling
from eventrouter.usage import day_at, months_around, report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eventrouter.app import App

_LOOKS_ON = 10.0  # seconds that `tail` waits for a line
_KEPT = 256 * 1024  # characters of what a handler prints while the command line waits for it

C = TypeVar("C", bound=Callable[..., Any])
Q = TypeVar("Q")


def reads(command: C) -> C:
    """Marks a command that changes nothing; it is not audited."""
    command.reads = True  # type: ignore[attr-defined]
    return command


def elsewhere(command: C) -> C:
    """Marks an act that who asks does itself, once it is recorded. The answer is the record's id; `ended` is due for it."""
    command.elsewhere = True  # type: ignore[attr-defined]
    return command


def describe_function(function: Function, setting: Setting = NOTHING_SET) -> dict[str, Any]:
    """One entry of `eventrouter list --json`. setting: what was set by hand."""
    policy = msgspec.to_builtins(msgspec.structs.replace(function.policy, role=None))
    policy["role"] = None if function.policy.role is None else function.policy.role.name
    policy["backoff"] = str(function.policy.backoff)
    policy["isolation"], policy["log_invocations"] = function.isolation, function.logs
    policy["network"] = msgspec.to_builtins(function.network)
    del policy["name"], policy["tags"]
    policy["env"] = sorted(function.policy.env)  # values may be secret
    policy["throttled"] = setting.throttled
    if setting.concurrency is not None:
        policy["concurrency"] = setting.concurrency
    return {
        "name": function.name,
        "triggers": [str(trigger) for trigger in function.triggers],
        "policy": policy,
        "tags": function.policy.tags,
        "module": function.module,
    }


def describe_letter(letter: Letter) -> dict[str, Any]:
    """One entry of `eventrouter dlq list --json`."""
    return {**msgspec.structs.asdict(letter), "died_at": iso_time(letter.died_at), "event": letter.event.envelope()}


class Operations:
    """Every public coroutine is a command; arguments and answers are JSON types. Raises EventRouterError.

    One that only `reads` says so; all others are recorded in the audit log: call them by `perform`.
    """

    def __init__(self, app: App, *, started: float = 0, echo: bool = True) -> None:
        self._app = app
        self.trail = app.trail
        self._started = started
        self._echo = echo
        self._lines: Recent | None = None
        self._said = asyncio.Event()
        self._forgets: asyncio.TimerHandle | None = None
        self.underway: set[str] = set()  # acts that are done elsewhere

    @reads
    async def status(self) -> dict[str, Any]:
        """pid, health, and per function how many attempts ended how and what the journal holds."""
        app = self._app
        assert app.supervisor is not None
        depth = await app.journal.depth()
        functions = {
            name: {
                key: getattr(lane, key)
                for key in (
                    "accepted",
                    "succeeded",
                    "failed",
                    "timed_out",
                    "dead",
                    "throttled",
                    "delayed",
                    "filtered",
                    "barred",
                    "denied",
                    "active",
                )
            }
            | {"journal": depth.get(name, {})}
            for name, lane in {**app.engine.lanes, **app.engine.intake.queues}.items()
            if lane is not None
        }
        health = msgspec.to_builtins(app.supervisor.health())
        return {
            "pid": os.getpid(),
            "health": health,
            "functions": functions,
            "unmatched": app.engine.intake.unmatched,
            "repeats": app.engine.intake.repeats,
        }

    @reads
    async def functions(self) -> list[dict[str, Any]]:
        setting = self._app.engine.throttling.setting
        return [describe_function(function, setting(name)) for name, function in self._app.functions.items()]

    async def throttle(self, function: str) -> dict[str, Any]:
        """Nothing of the function runs any more: events wait, requests are refused. Answers as `list --json` has it."""
        return await self._throttling(function, lambda throttling: throttling.throttle(function, True))

    async def unthrottle(self, function: str) -> dict[str, Any]:
        """The function runs again."""
        return await self._throttling(function, lambda throttling: throttling.throttle(function, False))

    async def concurrency(self, function: str, count: int | None) -> dict[str, Any]:
        """Reserve so much concurrency for the function; None: what its policy says."""
        return await self._throttling(function, lambda throttling: throttling.reserve(function, count))

    async def _throttling(self, function: str, do: Callable[[Throttling], Awaitable[Setting]]) -> dict[str, Any]:
        self._app.lane(function)
        return describe_function(self._app.functions[function], await do(self._app.engine.throttling))

    async def invoke(self, function: str, payload: str, parameters: dict[str, str], later: bool = False) -> dict[str, Any]:
        """Run a function now, or journal an event for it when `later`.

        Answers `{"status", "result" | "error", "logs", "report"}`, or `{"status": "accepted", "id"}`.
        """
        lane = self._app.lane(function)
        event = Event("invoke", "lambda.invoke", function, payload.encode(), attributes={"parameters": parameters})
        if later:
            await self._app.engine.accept_for(function, None, event, parameters)
            return {"status": "accepted", "id": event.id}
        request, tail = new_id(), _Tail()
        log = Log(
            function,
            request,
            lane.function.memory,
            self._app.clock.monotonic,
            logged=lane.function.logs,
            tail=tail,
            echo=self._echo,
            step=self._app.engine.accounts.billed,
        )
        token = current.set(log)
        try:
            with captured(), _collected(log, tail):
                outcome = await self._app.engine.invoke(lane, None, event, parameters, request)
        finally:
            current.reset(token)
        log.end()
        answer: dict[str, Any] = {"status": "failed", "logs": tail.text(), "report": log.report}
        if isinstance(outcome, Succeeded):
            try:
                answer |= {"result": _jsonable(outcome.result), "status": "succeeded"}
            except Exception as error:  # the handler's own objects may raise anything when they are read
                message = f"Unable to marshal response: {error}"
                answer["error"] = {"errorMessage": message, "errorType": "Runtime.MarshalError", "stackTrace": []}
        elif isinstance(outcome, Failed):
            answer["error"] = {"errorMessage": outcome.error_message, "errorType": outcome.error_type, "stackTrace": outcome.trace}
        elif isinstance(outcome, TimedOut):
            message = f"{request} Task timed out after {outcome.seconds:.2f} seconds"
            answer["error"] = {"errorMessage": message, "errorType": "Sandbox.Timedout"}
        else:
            answer["error"] = {"errorMessage": describe(outcome), "errorType": "Interrupted"}
        return answer

    @reads
    async def tail(self, function: str | None = None, after: int | None = None) -> dict[str, Any]:
        """What invocations have written to the log since the line `after`, None: from now on; it waits some seconds for that.

        Answers `{"lines": [[function, invocation, line]], "after"}`. Raises ConfigError when the function's invocations write none.
        """
        if function is not None and not self._app.lane(function).function.logs:
            raise ConfigError(f"{function} writes no log of its invocations; give it log_invocations=True")
        recent = self._recent()
        if after is None:
            after = recent.count
        if recent.count == after:
            self._said.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._said.wait(), _LOOKS_ON)
        lines = [line for line in recent.after(after) if function in (None, line[0])]
        return {"lines": lines, "after": recent.count}

    def _recent(self) -> Recent:
        """The lines are kept as long as somebody asks again and again."""
        loop = asyncio.get_running_loop()
        if self._lines is None:
            self._lines = Recent(lambda: loop.call_soon_threadsafe(self._said.set))
            logger.addHandler(self._lines)
        if self._forgets is not None:
            self._forgets.cancel()
        self._forgets = loop.call_later(2 * _LOOKS_ON, self._forget)
        return self._lines

    def _forget(self) -> None:
        if self._lines is not None:
            logger.removeHandler(self._lines)
            self._lines = None

    async def send(self, source: str, arguments: list[str], options: dict[str, list[str]], folder: str) -> Any:
        """Put a real event in through a source; see `Source`."""
        offering = {name: s for name, s in self._app.sources.items() if hasattr(s, "send")}
        if source not in offering:
            if source in self._app.plugins.by_name and source not in self._app.sources:
                raise ConfigError(f"send {source}: no function has a trigger of {source}, so the source is not running")
            raise ConfigError(f"send: no source takes events under the name {source!r}{suggest(source, offering)}")
        send: Any = getattr(offering[source], "send")  # noqa: B009 - not every source has it
        args, kwargs = arguments_for(send, f"send {source}", arguments, options, Path(folder))
        return await send(*args, **kwargs)

    @reads
    async def letter(self, id: str) -> dict[str, Any] | None:
        """By its own id or its event's; None: there is none."""
        for found in await self._app.journal.find(id):
            if found.state == "dead":
                return (await self.letters({"id": found.id}))[0]
        return None

    @reads
    async def letters(self, query: dict[str, Any]) -> list[dict[str, Any]]:
        """Dead letters, oldest first."""
        found: list[dict[str, Any]] = []
        after = ""
        while page := await self._app.journal.dead(_query(query), after, 1000):
            found += map(describe_letter, page)
            after = page[-1].id
        return found

    async def redrive(self, ids: Sequence[str], query: dict[str, Any]) -> int:
        """Send these letters again, or with no ids all that match. How many there were."""
        engine = self._app.engine
        return await (engine.by_hand.redrive(ids) if ids else engine.by_hand.letters(_query(query), engine.by_hand.redrive))

    async def purge(self, ids: Sequence[str], query: dict[str, Any]) -> int:
        """Delete these letters, or with no ids all that match. How many there were."""
        journal, engine = self._app.journal, self._app.engine
        return await (journal.purge(ids) if ids else engine.by_hand.letters(_query(query), journal.purge))

    async def replay(self, function: str, since: float, until: float | None = None) -> dict[str, Any]:
        """Run again what was accepted for a function, or a queue, between two times. Answers `{"replayed", "unwanted", "name"}`."""
        app = self._app
        if not seconds(app.config.journal.archive, "[journal] archive"):
            place = app.config.file or app.config.base / FILE
            raise ConfigError(
                f'there is no archive to replay from; write archive = "7d" under [journal] in {place}, and it begins with the next start'
            )
        queues = [name for name in await app.journal.archived_functions() if name not in app.functions]
        if function not in queues:
            app.lane(function)
        now = app.clock.time()
        name = f"replay-{iso_time(now)}"
        done = await replay(app.engine.intake, app.journal, name, function, since, now if until is None else until)
        return {**done._asdict(), "name": name}

    @reads
    async def permissions(self, function: str) -> dict[str, Any]:
        """What may start a function, and what it may do."""
        return self._app.access.show(function)

    async def add_permission(
        self, function: str, principal: str | None, action: str, source: str, sid: str, effect: str = "Allow"
    ) -> dict[str, Any]:
        """Add a statement to its function policy; without a principal, the trigger's own one `sid` that was removed."""
        return {"sid": await self._app.access.add(function, principal, action, source, sid, effect)}

    async def remove_permission(self, function: str, sid: str) -> dict[str, Any]:
        await self._app.access.remove(function, sid)
        return {"sid": sid}

    @reads
    async def simulate(
        self, function: str, action: str, resource: str, context: dict[str, Any], principal: str | None = None, source: str = ""
    ) -> dict[str, Any]:
        """Answers `{"decision", "statement", "by"}`."""
        return self._app.access.simulate(function, action, resource, context, principal, source)

    @reads
    async def event(self, id: str) -> list[dict[str, Any]]:
        """What is known of an event, one entry per function."""
        found = await self._app.journal.find(id)
        return [{**msgspec.structs.asdict(w), "accepted": iso_time(w.accepted), "due": iso_time(w.due)} for w in found]

    @reads
    async def usage(self, by: Sequence[str], since: str | None, until: str | None, tags: dict[str, str]) -> dict[str, Any]:
        """What was used; days as `2026-01-31`, the last one included; by default this month's."""
        app = self._app
        today = day_at(app.clock.time())
        first = _day(since, today.replace(day=1), "--since")
        last = _day(until, max(today, first), "--until")
        app.engine.accounts.flush()
        used = await app.journal.books.used(*months_around(first, last))
        answer: dict[str, Any] = msgspec.to_builtins(report(used, app.config.metering, by, first, last, tags))
        return answer

    @reads
    async def audit(self, query: dict[str, Any]) -> list[dict[str, Any]]:
        """CloudTrail records, oldest first; see `Query`."""
        self._app.engine.accounts.flush()
        return await self._app.trail.query(_converted(query, Query, "the audit log"))

    @reads
    async def verify(self, known: tuple[int, str] | None) -> dict[str, Any]:
        """Whether the audit log is whole; see `Verified`."""
        answer: dict[str, Any] = msgspec.to_builtins(await self._app.trail.verify(known))
        return answer

    # The master keys are not asked of a router: it may have other ones than who asks, and a value has no business on its way.

    @elsewhere
    async def secrets_init(self, keys: str) -> None:
        """Make the first master key. keys: where."""

    @elsewhere
    async def secrets_encrypt(self, function: str, variable: str) -> None:
        """Encrypt a value, for those; empty: not bound to one."""

    @elsewhere
    async def secrets_decrypt(self, function: str, variable: str) -> None:
        """Decrypt a value that was encrypted for those."""

    @elsewhere
    async def secrets_rotate(self, keys: str, files: list[str]) -> None:
        """Make a new master key, if they are here, and have the values in these files use the present one."""

    @reads
    async def ended(self, id: str, error: str, message: str) -> None:
        """What came of an act that was done elsewhere; it has no record of its own. See `Trail.answered`."""
        if id not in self.underway:
            raise EventRouterError(f"no act {id} is under way; was the router restarted meanwhile?")
        self.underway.discard(id)
        await self.trail.answered(id, error=error, message=message)


async def perform(operations: Operations, command: str, arguments: dict[str, Any], who: Who) -> Any:
    """The one way in for a command, of a running router as of one that is opened for it: what may change anything is recorded first.

    Raises EventRouterError.
    """
    method = getattr(type(operations), command, None)
    if command.startswith("_") or method is None:
        raise EventRouterError(f"the running router knows no command {command!r}; is it of another version?")
    try:
        inspect.signature(method).bind(operations, **arguments)
        hints = typing.get_type_hints(method)
        given = {name: msgspec.convert(value, hints[name]) for name, value in arguments.items()}
    except (TypeError, msgspec.ValidationError) as error:
        raise EventRouterError(f"{command} does not take these arguments: {error}; is the router of another version?") from None
    if hasattr(method, "reads"):
        return await method(operations, **given)
    trail = operations.trail
    id = await trail.asked(who, command, given)
    if hasattr(method, "elsewhere"):
        operations.underway.add(id)
        return id
    try:
        result = await method(operations, **given)
    except BaseException as error:
        await trail.answered(id, error=type(error).__name__, message=str(error))
        raise
    await trail.answered(id, result)
    return result


def _day(text: str | None, default: date, option: str) -> date:
    try:
        return default if text is None else date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"usage {option}: {text!r} is no day; write it as 2026-01-31") from None


def _query(query: Mapping[str, Any]) -> LetterQuery:
    return _converted(query, LetterQuery, "dead letters")


def _converted(query: Mapping[str, Any], kind: type[Q], of: str) -> Q:
    try:
        return msgspec.convert(query, kind)
    except msgspec.ValidationError as error:
        raise EventRouterError(f"no query for {of}: {error}") from None


def _jsonable(result: Any) -> Any:
    plain = msgspec.to_builtins(result)
    msgspec.json.encode(plain)  # lone surrogates and numbers of any length are builtins, but not JSON
    return plain


def _parameters(function: Any) -> tuple[list[inspect.Parameter], dict[str, inspect.Parameter]]:
    """Those that are words of the command line, and its options by name."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    words = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return words, {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}


def usage_of(function: Any, command: str) -> str:
    """How `Source.send` or `Plugin.sample` is called from the command line."""
    hints = typing.get_type_hints(function)
    positional, keyword = _parameters(function)
    words = [p.name.upper() if p.default is p.empty else f"[{p.name.upper()}]" for p in positional]
    for name in keyword:
        value = "NAME=VALUE" if (typing.get_origin(hints[name]) or hints[name]) is dict else "..."
        words.append(f"[--{name.replace('_', '-')} {value}]")
    return " ".join(["eventrouter", command, *words])


def arguments_for(
    function: Any, command: str, given: Sequence[str], options: Mapping[str, list[str]], folder: Path
) -> tuple[list[Any], dict[str, Any]]:
    """Convert command-line text to what `Source.send` or `Plugin.sample` declares. Raises ConfigError with the usage of `command`."""
    hints = typing.get_type_hints(function)
    positional, keyword = _parameters(function)
    usage = f"usage: {usage_of(function, command)}"
    if not sum(p.default is p.empty for p in positional) <= len(given) <= len(positional):
        raise ConfigError(usage)
    for name in options:
        if name not in keyword:
            raise ConfigError(f"{command}: no option --{name}{suggest(name, keyword)}; {usage}")

    def convert(name: str, values: list[str]) -> Any:
        kind = hints[name]
        if kind is Path:
            return folder / values[-1]
        container = typing.get_origin(kind) or kind
        if container is dict:
            pairs = [text.partition("=") for text in values]
            for pair in pairs:
                if not pair[1]:
                    raise ConfigError(f"{command}: --{name} {pair[0]!r}: write NAME=VALUE")
            return {key: value for key, _, value in pairs}
        many = container is list
        try:
            return msgspec.convert(values if many else values[-1], kind, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{command}: {name.upper()} {values[-1]!r}: {explain(error)[1]}; {usage}") from None

    args = [convert(p.name, [text]) for p, text in zip(positional, given, strict=False)]
    return args, {name: convert(name, values) for name, values in options.items()}


# What a handler prints and logs while the command line waits for it.


class _Tail:
    """The end of what is written to it: its memory is bounded, however much that is."""

    def __init__(self) -> None:
        self._kept = io.StringIO()
        self._left_out = 0

    def write(self, text: str) -> None:
        self._kept.write(text[-_KEPT:])
        self._left_out += max(0, len(text) - _KEPT)
        if self._kept.tell() > 2 * _KEPT:  # to cut at each write would be to copy all of it each time
            self._cut()

    def text(self) -> str:
        self._cut()
        kept = self._kept.getvalue().encode(errors="replace").decode()  # a lone surrogate could not be sent
        if not self._left_out:
            return kept
        return f"[the first {self._left_out:,} characters were left out; these are the last {len(kept):,}]\n{kept}"

    def _cut(self) -> None:
        written = self._kept.getvalue()
        self._left_out += max(0, len(written) - _KEPT)
        self._kept = io.StringIO()
        self._kept.write(written[-_KEPT:])


class _Collect(logging.Handler):
    def __init__(self, log: Log, tail: _Tail) -> None:
        super().__init__()
        self._log = log
        self._tail = tail

    def emit(self, record: logging.LogRecord) -> None:
        if current.get() is self._log and record.name.partition(".")[0] != "eventrouter":
            self._tail.write(f"[{record.levelname}] {record.name} {record.getMessage()}\n")


@contextmanager
def _collected(log: Log, tail: _Tail) -> Iterator[None]:
    """What its handler logs meanwhile is in the tail, too."""
    handler = _Collect(log, tail)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
