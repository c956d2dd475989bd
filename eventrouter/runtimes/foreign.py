"""What runs in the environment of a function without Python: its program, which gets jobs and answers them by Lambda's Runtime API.

Between the program and the router, which so never sees its HTTP.
"""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
import signal
import socket
import subprocess
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

from eventrouter.clock import SystemClock
from eventrouter.functions import Function
from eventrouter.model import Failed, function_arn
from eventrouter.runtimes.channel import Channel
from eventrouter.runtimes.failures import failure
from eventrouter.runtimes.frames import Answer, Job, Line, frame
from eventrouter.runtimes.kernel import die_with_parent
from eventrouter.runtimes.peers import descendants, of_descendant
from eventrouter.runtimes.programs import INIT, find_program
from eventrouter.runtimes.runtime_api import Invocation, RuntimeApi, Streamed
from eventrouter.runtimes.streams import Closed
from eventrouter.runtimes.worker import bound, give, wait_until_read

_LAST_WORDS: Final = 0.2  # seconds in which what an ended program has sent is read
_job = msgspec.msgpack.Decoder(Job).decode


def serve(function: Function, line: Line, tokens: socket.socket, answers: int, channel: Channel) -> NoReturn:
    """As `worker.serve`, for a function without Python, and then end the process: as its program has ended, if that did by itself."""
    asyncio.new_event_loop().run_until_complete(_Environment(function, line, tokens, answers, channel).run())
    raise AssertionError


class _Environment:
    def __init__(self, function: Function, line: Line, tokens: socket.socket, answers: int, channel: Channel) -> None:
        self._function = function
        self._line = line
        self._tokens = tokens
        self._answers = answers
        self._channel = channel
        self._api = RuntimeApi(lambda end: of_descendant(end, self._program.pid))

    async def run(self) -> NoReturn:
        # The program gets it as well, and may take its time.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)
        self._tokens.setblocking(False)
        self._program = self._start(await self._api.listen())
        self._ended = asyncio.ensure_future(asyncio.to_thread(self._program.wait))
        await self._unless_it_ends(self._api.asks.wait(), INIT)
        give(self._answers, frame(Answer("ready", None)))
        while (job := await self._next_job()) is not None:
            answer = await self._answer(job)
            wait_until_read()
            give(self._answers, answer)
            if self._api.fault is not None:  # the next environment may have more luck
                break
            del job, answer
        self._program.terminate()
        await self._ended
        _end_as(0)  # here: nothing of the loop needs to be put in order

    def _start(self, address: str) -> subprocess.Popen[bytes]:
        policy = self._function.policy
        program = find_program(policy, Path(), f"[functions.{self._function.name}]")
        given = {"AWS_LAMBDA_RUNTIME_API": address, "LAMBDA_TASK_ROOT": str(program.folder), "_HANDLER": policy.handler or ""}
        return subprocess.Popen(  # noqa: S603 - the user's own
            program.command,
            cwd=program.folder,
            env={**os.environ, **given},
            stdin=subprocess.DEVNULL,
            preexec_fn=partial(die_with_parent, signal.SIGKILL),  # noqa: PLW1509 - there are no threads yet
        )

    async def _unless_it_ends(self, what: Coroutine[Any, Any, Any], seconds: float | None = None) -> Any:
        """Its result; None when it takes more time. A program that has said why it can't work is no longer needed."""
        waits = asyncio.ensure_future(what)
        if self._api.fault is None:
            await asyncio.wait((waits, self._ended), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not waits.done() and self._ended.done():
                await asyncio.wait((waits,), timeout=_LAST_WORDS)
            if not waits.done() and self._ended.done():
                _end_as(self._ended.result())
            if not waits.done():
                return None
        return await waits

    async def _next_job(self) -> Job | None:
        """None: the router wants no more."""
        # What it still does after an answer may be its end: no job is to be lost by that.
        await self._unless_it_ends(self._api.asks.wait())
        token = await self._unless_it_ends(asyncio.get_running_loop().sock_recv(self._tokens, 1))
        while token and (data := self._line.take()) is not None:
            job = _job(data)
            if job.token == token[0]:  # else it was taken back
                return job
        return None

    async def _answer(self, job: Job) -> bytes:
        """The frame that says what became of it."""
        kind = "returned"
        try:
            result = self._api.fault or await self._invoke(job)
            if isinstance(result, Streamed):
                kind, result = "streamed", await self._unless_it_ends(self._hand_over(job, result))
        except Exception as error:  # the event is not what the trigger takes it for
            result = failure(error)
        answer = Answer("failed", None, result) if isinstance(result, Failed) else Answer(kind, result)
        if job.report:
            answer.peak = _peak(self._program.pid)
        try:
            return frame(answer)
        except Exception as error:  # numbers of more than 64 bits
            return frame(Answer("failed", None, Failed("Runtime.MarshalError", f"Unable to marshal response: {error}")))

    async def _invoke(self, job: Job) -> Any:
        args, _, _, _ = bound(self._function, {}, job)
        now = SystemClock.time()
        trace = f"Root=1-{int(now):08x}-{secrets.token_hex(12)};Parent={secrets.token_hex(8)};Sampled=0"
        deadline = int((now + job.seconds) * 1000)
        payload, arn = msgspec.json.encode(args[0]), function_arn(self._function.name)
        return await self._unless_it_ends(self._api.invoke(Invocation(job.id, payload, deadline, arn, trace, streams=job.stream)))

    async def _hand_over(self, job: Job, answer: Streamed) -> Failed | None:
        """Chunk by chunk, as the router takes them: how it ended."""
        self._channel.invocation = job.id
        try:
            with suppress(Closed):
                await self._channel.call("", "begin", args=(answer.head,))
                async for chunk in answer.chunks:
                    await self._channel.call("", "chunk", args=(chunk,))
        finally:
            await answer.chunks.aclose()  # or the program would wait for ever for who takes the rest
            self._channel.invocation = None
        return answer.failed


def _end_as(code: int) -> NoReturn:
    """End as the program has, which then is what the router tells of. code: as of Popen."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError):  # of some it can't be set, nor need be
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _peak(pid: int) -> int:
    """The memory of a process and those that it has started, MB, at most so far; 0 where the kernel doesn't say."""
    peak = 0
    for each in (pid, *descendants(pid)):
        with suppress(OSError, ValueError):
            lines = Path(f"/proc/{each}/status").read_text().splitlines()
            peak += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return peak // 1024
