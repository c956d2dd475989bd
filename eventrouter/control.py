"""What the command line can ask of an App, and the control socket it asks through."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import inspect
import io
import logging
import os
import resource
import secrets
import socket
import struct
import sys
import tempfile
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from eventrouter.attempts import describe
from eventrouter.audit import Query, Who
from eventrouter.config import FILE, seconds
from eventrouter.errors import ConfigError, EventRouterError, NotRunning, explain, suggest
from eventrouter.functions import Function
from eventrouter.journal.protocol import Letter, LetterQuery
from eventrouter.model import Event, Failed, Succeeded, TimedOut, iso_time, new_id
from eventrouter.replay import replay
from eventrouter.runtimes.environments import Report
from eventrouter.runtimes.environments import report as environment
from eventrouter.usage import day_at, months_around, report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eventrouter.app import App

_LIMIT = 64 * 1024 * 1024  # bytes of one request or answer
_SOCKET_PATH = 100  # the kernel's limit is 108 bytes, macOS' 104
_KEPT = 256 * 1024  # characters of what a handler prints while the command line waits for it


log = logging.getLogger("eventrouter")
C = TypeVar("C", bound=Callable[..., Any])


def reads(command: C) -> C:
    """Marks a command that changes nothing; it is not audited."""
    command.reads = True  # type: ignore[attr-defined]
    return command


def describe_function(function: Function) -> dict[str, Any]:
    """One entry of `eventrouter list --json`."""
    policy = msgspec.to_builtins(function.policy)
    policy["backoff"] = str(function.policy.backoff)
    policy["isolation"] = function.isolation
    policy["network"] = msgspec.to_builtins(function.network)
    del policy["name"], policy["tags"]
    policy["env"] = sorted(function.policy.env)  # values may be secret
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

    @reads
    async def status(self) -> dict[str, Any]:
        """pid, health, and per function how many attempts ended how and what the journal holds."""
        app = self._app
        assert app.supervisor is not None
        depth = await app.journal.depth()
        functions = {
            name: {
                key: getattr(lane, key)
                for key in ("accepted", "succeeded", "failed", "timed_out", "dead", "throttled", "filtered", "active")
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
        return [describe_function(function) for function in self._app.functions.values()]

    async def invoke(self, function: str, payload: str, parameters: dict[str, str], later: bool = False) -> dict[str, Any]:
        """Run a function now, or journal an event for it when `later`.

        Answers `{"status", "result" | "error", "logs", "report"}`, or `{"status": "accepted", "id"}`.
        """
        lane = self._app.lane(function)
        event = Event("invoke", "lambda.invoke", function, payload.encode(), attributes={"parameters": parameters})
        if later:
            await self._app.engine.accept_for(function, None, event, parameters)
            return {"status": "accepted", "id": event.id}
        request = new_id()
        began = self._app.clock.monotonic()
        token = environment.set(isolated := Report())
        try:
            with _captured(self._echo) as logs:
                outcome = await self._app.engine.invoke(lane, None, event, parameters, request)
        finally:
            environment.reset(token)
        milliseconds = (self._app.clock.monotonic() - began) * 1000
        told = _report(request, milliseconds, isolated, lane.function.policy.memory or 128, self._app.config.metering.step)
        answer: dict[str, Any] = {"status": "failed", "logs": logs.text(), "report": told}
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
        while page := await self._app.journal.dead(LetterQuery(**query), after, 1000):
            found += map(describe_letter, page)
            after = page[-1].id
        return found

    async def redrive(self, ids: Sequence[str], query: dict[str, Any]) -> int:
        """Send these letters again, or with no ids all that match. How many there were."""
        engine = self._app.engine
        return await (engine.by_hand.redrive(ids) if ids else engine.by_hand.letters(LetterQuery(**query), engine.by_hand.redrive))

    async def purge(self, ids: Sequence[str], query: dict[str, Any]) -> int:
        """Delete these letters, or with no ids all that match. How many there were."""
        journal, engine = self._app.journal, self._app.engine
        return await (journal.purge(ids) if ids else engine.by_hand.letters(LetterQuery(**query), journal.purge))

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
        return await self._app.trail.query(Query(**query))

    @reads
    async def verify(self, known: tuple[int, str] | None) -> dict[str, Any]:
        """Whether the audit log is whole; see `Verified`."""
        answer: dict[str, Any] = msgspec.to_builtins(await self._app.trail.verify(known))
        return answer


async def perform(operations: Operations, command: str, arguments: dict[str, Any], who: Who) -> Any:
    """The one way in for a command, of a running router as of one that is opened for it: what may change anything is recorded first.

    Raises EventRouterError.
    """
    method = getattr(operations, command, None)
    if command.startswith("_") or method is None:
        raise EventRouterError(f"the running router knows no command {command!r}; is it of another version?")
    if hasattr(method, "reads"):
        return await method(**arguments)
    trail = operations.trail
    id = await trail.asked(who, command, arguments)
    try:
        result = await method(**arguments)
    except BaseException as error:
        await trail.answered(id, None, error)
        raise
    await trail.answered(id, result)
    return result


def _day(text: str | None, default: date, option: str) -> date:
    try:
        return default if text is None else date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"usage {option}: {text!r} is no day; write it as 2026-01-31") from None


def _jsonable(result: Any) -> Any:
    plain = msgspec.to_builtins(result)
    msgspec.json.encode(plain)  # lone surrogates and numbers of any length are builtins, but not JSON
    return plain


def _report(request: str, milliseconds: float, isolated: Report, memory: int, step: int) -> str:
    if isolated.init is not None:  # as Lambda bills it, that's not the handler's
        milliseconds = max(0, milliseconds - isolated.init * 1000)
    billed = -(-max(milliseconds, 1) // step) * step
    peak = isolated.peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform != "darwin" else 1024 * 1024)
    init = f"Init Duration: {isolated.init * 1000:.2f} ms\t" if isolated.init is not None else ""
    return (
        f"REPORT RequestId: {request}\tDuration: {milliseconds:.2f} ms\tBilled Duration: {billed:.0f} ms\t"
        f"Memory Size: {memory} MB\tMax Memory Used: {peak} MB\t{init}"
    )


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


_tail: ContextVar[_Tail | None] = ContextVar("eventrouter_logs", default=None)


class _Tee(io.TextIOBase):
    def __init__(self, real: Any, echo: bool) -> None:
        self.real = real
        self._echo = echo

    def write(self, text: str) -> int:
        tail = _tail.get()
        if tail is not None:
            tail.write(text)
        if tail is None or self._echo:
            self.real.write(text)
        return len(text)

    def flush(self) -> None:
        self.real.flush()


class _Collect(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tail = _tail.get()
        if tail is not None and record.name.partition(".")[0] != "eventrouter":
            tail.write(f"[{record.levelname}] {record.name} {record.getMessage()}\n")


@contextmanager
def _captured(echo: bool) -> Iterator[_Tail]:
    tail = _Tail()
    token = _tail.set(tail)
    handler, tee = _Collect(), _Tee(sys.stdout, echo)
    logging.getLogger().addHandler(handler)
    sys.stdout = tee
    try:
        yield tail
    finally:
        logging.getLogger().removeHandler(handler)
        if sys.stdout is tee:
            sys.stdout = tee.real
        _tail.reset(token)


# The socket: one JSON line asks, one answers.


def socket_path(data: Path) -> Path:
    """DIR/control.sock, or one in a private runtime folder where that path is too long for a socket."""
    path = data.resolve() / "control.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH:
        return path
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"{tempfile.gettempdir()}/eventrouter-{os.getuid()}")
    runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
    if runtime.stat().st_uid != os.getuid():
        raise EventRouterError(f"{runtime} belongs to somebody else; set XDG_RUNTIME_DIR to a folder of yours")
    return runtime / f"eventrouter-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.sock"


class ControlServer:
    """Answers commands on the control socket; only the owner of the data folder may connect."""

    def __init__(self, operations: Operations, data: Path) -> None:
        self._operations = operations
        self._data = data
        self._path = socket_path(data)
        self._key = ""
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> None:
        self._path.unlink(missing_ok=True)  # a killed predecessor's; the folder's lock says there is no other
        self._key = _make_key(self._data)
        mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, self._path, limit=_LIMIT)
        finally:
            os.umask(mask)

    async def __aexit__(self, *exc: object) -> None:
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, ValueError):
            who = peer(writer.get_extra_info("socket"))
            writer.write(msgspec.json.encode(await self._answer(await reader.readline(), who)) + b"\n")
            await writer.drain()
        writer.close()

    async def _answer(self, line: bytes, who: Who) -> dict[str, Any]:
        try:
            if who.uid not in (0, os.getuid()):
                log.warning("%s (uid %d) was refused at the control socket", who.name, who.uid, extra={"action": "control.refused"})
                raise EventRouterError(f"this router is {Who.me().name}'s, and you are {who.name}; run the command as {Who.me().name}")
            asked = msgspec.json.decode(line, type=_Request)
            if not hmac.compare_digest(asked.key.encode(), self._key.encode()):
                raise EventRouterError("only who can read the data folder may ask the router that serves it")
            return {"result": await perform(self._operations, asked.command, asked.arguments, who)}
        except EventRouterError as error:
            return {"error": str(error), "usage": isinstance(error, ConfigError)}
        except Exception as error:
            log.exception("control command failed", extra={"action": "control.failed"})
            return {"error": f"{type(error).__name__}: {error}", "usage": False}


def peer(connection: Any) -> Who:
    """Who is at the other end of a Unix socket, as the kernel says."""
    if not hasattr(socket, "SO_PEERCRED"):  # macOS; the socket's mode lets nobody else connect
        return Who.me()
    with socket.socket(fileno=os.dup(connection.fileno())) as own:  # uvloop's has no getsockopt
        pid, uid, _ = struct.unpack("3i", own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Who.of(uid, pid)


class _Request(msgspec.Struct):
    command: str
    arguments: dict[str, Any]
    key: str = ""


def _make_key(data: Path) -> str:
    """Isolated functions may be of the router's user and find its socket; they don't see its data folder."""
    path = data / "control.key"
    path.unlink(missing_ok=True)
    key = secrets.token_hex()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(key)
    return key


def ask(data: Path, command: str, **arguments: Any) -> Any:
    """Ask the router that serves this data folder. Raises NotRunning when none does, else its error."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(os.fspath(socket_path(data)))
            key = (data / "control.key").read_text()
        except OSError:
            raise NotRunning(f"no router is running on {data}; start one with `eventrouter serve`") from None
        connection.sendall(msgspec.json.encode(_Request(command, arguments, key)) + b"\n")
        with connection.makefile("rb") as answers:
            line = answers.readline()
    if not line:
        raise EventRouterError("the router went away before it answered")
    answer = msgspec.json.decode(line)
    if "error" in answer:
        raise (ConfigError if answer["usage"] else EventRouterError)(answer["error"])
    return answer["result"]
