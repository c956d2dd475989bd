"""Handlers in processes of their own: what they get, how they end, and how many there are."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from eventrouter import App, Event, Failed, Interrupted, Outcome, Response, Succeeded, TimedOut, on
from eventrouter.clock import Clock, ManualClock
from eventrouter.config import load_config
from eventrouter.errors import ConfigError, Throttled
from eventrouter.journal.protocol import LetterQuery
from eventrouter.operations import Operations
from eventrouter.plugins import Plugins
from eventrouter.runtimes.forking import cause_of_death
from eventrouter.runtimes.process import IDLE
from served import Place, wait_for
from support import LOCAL, local, make_app, put, until

HANDLERS = Path(__file__).with_name("isolated.py")
MEMORY = "[journal]\nurl = 'memory'\n"


def app_of(folder: Path, toml: str = "", clock: Clock | None = None, *modules: str) -> App:
    file = folder / "eventrouter.toml"
    file.write_text(MEMORY + toml)
    plugins = Plugins([LOCAL])
    return App(*(modules or (str(HANDLERS),)), config=load_config(plugins.by_name, file=file), plugins=plugins, clock=clock)


@asynccontextmanager
async def isolated(folder: Path, toml: str = "", clock: Clock | None = None) -> AsyncIterator[Callable[..., Any]]:
    """Yields what calls a function and returns its outcome."""
    async with app_of(folder, toml, clock) as app:

        async def call(name: str, payload: Any = None, **captures: str) -> Outcome:
            data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
            return await app.run_now(name, Event("invoke", "lambda.invoke", name, data), captures)

        call.app = app  # type: ignore[attr-defined]
        yield call


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # that, when it goes between the opening and the reading
        return False


async def test_what_a_handler_gets_and_gives(tmp_path: Path) -> None:
    async with isolated(tmp_path) as call:
        for value in (None, 1, "text", [1, {"a": [None, True, 2.5]}], {"ä": "ö"}):
            assert await call("echo", value) == Succeeded(value)
        assert await call("read", {"celsius": 20}, room="7") == Succeeded({"celsius": 20.0, "room": 7})
        assert await call("waits", 5) == Succeeded(Response({"got": 5}, 201, {"x": "y"}))
        assert await call("read", {"celsius": "x"}, room="7") == Failed("InvalidPayload", "$.celsius: expected float, got str", final=True)
        assert await call("read", {"celsius": 1}, room="x") == Failed("InvalidPayload", "room: expected int, got str", final=True)
        assert await call("read", {"celsius": 1}) == Failed(
            "InvalidPayload", "room: missing; a direct invocation gives it as `--param room=VALUE`", final=True
        )
        data = os.urandom(5_000_000)
        assert await call("size", data) == Succeeded(data[::-1])
        (pid, *firsts), (again, *seconds) = [(await call("depends", n)).result for n in (1, 2)]
        assert (pid, firsts, seconds) == (again, [1], [1, 2])


async def test_lambda_context_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTROUTER_SECRET", "1")
    monkeypatch.setenv("DATABASE_PASSWORD", "1")
    async with isolated(tmp_path) as call:
        got = (await call("aws", {"k": 1})).result
    assert got["event"] == {"k": 1}
    assert got["name"] == "aws"
    assert got["id"]
    assert 0 < got["left"] <= 3000
    environ = got["environ"]
    assert (environ["AWS_LAMBDA_FUNCTION_NAME"], environ["AWS_REGION"], environ["COLOUR"]) == ("aws", "local", "red")
    assert environ["PATH"] == os.environ["PATH"]
    assert not {"EVENTROUTER_SECRET", "DATABASE_PASSWORD"} & set(environ)


async def test_an_environment_has_no_descriptor_of_the_routers(tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        async with isolated(tmp_path) as call:
            found = (await call("descriptors")).result
    kinds = {number: re.sub(r"\d+|\[|\]", "", target) for number, target in found.items()}
    assert kinds.pop("0") == "/dev/null"
    assert sorted(kinds.values()) == ["pipe:", "pipe:", "pipe:", "socket:", "socket:", "socket:"]


async def test_what_it_prints_goes_to_the_invocations_log(tmp_path: Path) -> None:
    async with isolated(tmp_path) as call:
        operations = Operations(call.app, echo=False)
        cold, warm = [await operations.invoke("prints", '"x"', {}) for _ in range(2)]
        for answer in (cold, warm):
            start, *printed, end = answer["logs"].splitlines()
            assert printed == ["out x", "err x", "raw", "[WARNING] mine logged"]
            assert re.fullmatch(r"START RequestId: \S+ Version: \$LATEST", start)
            assert re.fullmatch(r"END RequestId: \S+", end)
        assert re.search(r"\tMax Memory Used: \d+ MB\tInit Duration: [\d.]+ ms\t$", cold["report"])
        assert "Init Duration" not in warm["report"]
        many = await asyncio.gather(*(call("prints", n) if n % 3 else operations.invoke("prints", str(n), {}) for n in range(60)))
        for n in range(0, 60, 3):
            assert many[n]["logs"].splitlines()[1:-1] == [f"out {n}", f"err {n}", "raw", "[WARNING] mine logged"]
        died = await operations.invoke("exits", "3", {})
        assert died["logs"].splitlines()[1:-1] == ["last words"]


async def test_errors(tmp_path: Path) -> None:
    async with isolated(tmp_path) as call:
        failed = await call("raises")
        assert (failed.error_type, failed.error_message) == ("LookupError", "no such thing")
        (line,) = failed.trace
        assert "isolated.py" in line
        assert "raise LookupError" in line
        assert await call("rejects") == Failed("Reject", "not today", final=True)
        assert (await call("retries")).retry_after == 7
        for payload in ("object", "chunks"):
            failed = await call("what", payload)
            assert failed.error_type == "Runtime.MarshalError"
            assert failed.error_message.startswith("Unable to marshal response: ")


@pytest.mark.parametrize(
    ("name", "payload", "words"),
    [
        ("exits", 3, "Runtime exited with error: exit status 3"),
        ("exits", 0, "Runtime exited without providing a reason"),
        ("segfaults", None, "Runtime exited with error: signal: segmentation fault"),
        ("kills_itself", None, "Runtime exited with error: signal: killed"),
        ("writes_to_the_line", None, "Runtime exited with error: signal: terminated"),
    ],
)
async def test_the_death_of_an_environment_is_an_error_of_its_function(tmp_path: Path, name: str, payload: Any, words: str) -> None:
    async with isolated(tmp_path) as call:
        for _ in range(2):
            failed = await call(name, payload)
            assert failed.error_type == "Runtime.ExitError"
            assert re.fullmatch(f"RequestId: [0-9a-f-]+ Error: {words}", failed.error_message)
        assert await call("echo", 1) == Succeeded(1)


def test_what_the_kernel_kills_for_memory_is_told_as_lambda_does() -> None:
    assert cause_of_death(signal.SIGKILL, out_of_memory=True) == ("Runtime.OutOfMemory", "Runtime exited with error: signal: killed")
    assert cause_of_death(signal.SIGSEGV, out_of_memory=True)[0] == "Runtime.ExitError"


@pytest.mark.parametrize("how", ["regex", "stubborn", "child"])
async def test_a_time_out_kills_the_environment_and_what_it_started(tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str) -> None:
    async with isolated(tmp_path) as call:
        assert await call("slow", how) == TimedOut(0.3)
        printed = capsys.readouterr().out
        pids = [int(pid) for pid in re.findall(r"\d+", printed)]
        assert len(pids) == (2 if how == "child" else 1)
        fresh = (await call("slow", "quick")).result
        assert fresh not in pids
        await until(lambda: not any(map(lives, pids)))
        assert (await call("slow", "quick")).result == fresh


async def test_a_time_out_of_an_event_is_an_attempt_and_ends(tmp_path: Path) -> None:
    async with isolated(tmp_path) as call:
        app = call.app
        await put(app, "slow", "stubborn")
        await until(lambda: app.engine.lanes["slow"].dead == 1)
        await app.journal.flush()
        (letter,) = await app.journal.dead(LetterQuery("slow"))
        assert (letter.reason, letter.error_type, letter.attempts) == ("RetriesExhausted", "Sandbox.Timedout", 1)


async def test_retries_and_dead_letters_follow_the_policy(tmp_path: Path) -> None:
    async with isolated(tmp_path) as call:
        app = call.app
        await put(app, "raises")
        await put(app, "rejects")
        await put(app, "read/x", {"celsius": 1})
        lanes = app.engine.lanes
        await until(lambda: all(lanes[name].dead for name in ("raises", "rejects", "read")))
        await app.journal.flush()
        letters = {letter.function: letter for letter in await app.journal.dead(LetterQuery())}
        assert (letters["raises"].attempts, letters["raises"].error_type) == (2, "LookupError")
        assert letters["rejects"].reason == "Rejected"
        assert letters["read"].reason == "InvalidPayload"


async def test_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with isolated(tmp_path) as call:
        app, lane = call.app, call.app.engine.lanes["batch"]
        for number in (1, -2, "x"):
            await put(app, "batch", number)
        await until(lambda: lane.dead == 2)
        await app.journal.flush()
        letters = await app.journal.dead(LetterQuery("batch"))
        assert sorted((letter.error_type, letter.attempts) for letter in letters) == [("InvalidPayload", 1), ("PartialFailure", 2)]
    assert capsys.readouterr().out == "batch [-2, 1]\nbatch [-2]\n"


async def test_it_is_reused_while_warm_and_forked_from_one_template(tmp_path: Path) -> None:
    async with isolated(tmp_path) as call:
        first = (await call("who", 0)).result
        assert (await call("who", 0)).result == first
        pid, parent, loaded_in = first
        assert pid != parent == loaded_in != os.getpid()


async def test_as_many_as_there_is_demand_for_up_to_processes(tmp_path: Path) -> None:
    async with isolated(tmp_path, "[app]\nprocesses = 3\n") as call:
        outcomes = await asyncio.gather(*(call("who", 0.1) for _ in range(9)))
        assert len({outcome.result[0] for outcome in outcomes}) == 3
        # Another function gets its share of them, while the first has work and when it has none.
        busy = [asyncio.create_task(call("who", 0.05)) for _ in range(30)]
        assert isinstance(await call("other", 0), Succeeded)
        assert not all(task.done() for task in busy)
        await asyncio.gather(*busy)
        assert isinstance(await call("other", 0), Succeeded)


async def test_with_one_process_functions_take_turns(tmp_path: Path) -> None:
    async with isolated(tmp_path, "[app]\nprocesses = 1\n") as call:
        outcomes = await asyncio.gather(*(call(name, 0) for name in ("who", "other", "who", "other")))
        assert all(isinstance(outcome, Succeeded) for outcome in outcomes)


async def test_what_is_quick_is_sent_ahead_and_taken_back_from_behind_what_is_not(tmp_path: Path) -> None:
    async with isolated(tmp_path, "[app]\nprocesses = 2\n") as call:
        await asyncio.gather(*(call("who", 0) for _ in range(200)))
        mixed = [asyncio.create_task(call("who", 2 if n == 50 else 0)) for n in range(100)]
        quick = [task for n, task in enumerate(mixed) if n != 50]
        outcomes = await asyncio.gather(*quick)
        assert not mixed[50].done()  # none of them had to wait for it
        assert len({outcome.result[0] for outcome in outcomes}) <= 2
        assert isinstance(await mixed[50], Succeeded)
        # Of what one that dies had been sent, only what it ran has failed.
        await asyncio.gather(*(call("dies", 0) for _ in range(50)))
        outcomes = await asyncio.gather(*(call("dies", int(n == 30)) for n in range(60)))
        assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Failed)] == [30]
        # While one function is busy with what is quick, another gets its turn.
        busy = [asyncio.create_task(call("who", 0.002)) for _ in range(300)]
        assert isinstance(await call("other", 0), Succeeded)
        assert not all(task.done() for task in busy)
        await asyncio.gather(*busy)


async def test_a_call_sent_ahead_can_be_given_up(tmp_path: Path) -> None:
    async with isolated(tmp_path, "[app]\nprocesses = 1\n") as call:
        await asyncio.gather(*(call("who", 0) for _ in range(100)))
        tasks = [asyncio.create_task(call("who", 0)) for _ in range(100)]
        await until(lambda: any(task.done() for task in tasks))
        given_up = tasks[::3]
        for task in given_up:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for task, outcome in zip(tasks, outcomes, strict=True):
            assert isinstance(outcome, Succeeded) or (task in given_up and isinstance(outcome, asyncio.CancelledError))
        assert isinstance(await call("who", 0), Succeeded)


async def test_a_request_that_finds_none_free_is_throttled(tmp_path: Path) -> None:
    async with isolated(tmp_path, "[app]\nprocesses = 1\n[functions.echo]\ntimeout = 0.2\n") as call:
        busy = asyncio.create_task(call("who", 1))
        await until(lambda: call.app.engine.lanes["who"].active)
        with pytest.raises(Throttled, match="all 1 environments"):
            await call("echo", 1)
        assert call.app.engine.lanes["echo"].throttled == 1
        assert isinstance(await busy, Succeeded)
        assert await call("echo", 1) == Succeeded(1)


async def test_an_event_waits_for_an_environment(tmp_path: Path) -> None:
    async with isolated(tmp_path, "[app]\nprocesses = 1\n[functions.echo]\ntimeout = 0.2\n") as call:
        busy = asyncio.create_task(call("who", 0.5))
        await until(lambda: call.app.engine.lanes["who"].active)
        await put(call.app, "echo", 1)
        await until(lambda: call.app.engine.lanes["echo"].succeeded == 1)
        assert isinstance(await busy, Succeeded)
        assert call.app.engine.lanes["echo"].timed_out == 0


def environments(call: Any, name: str) -> int:
    return int(call.app._processes._crews[name].count)


async def test_idle_ones_are_ended_and_some_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = ManualClock()
    async with isolated(tmp_path, "[functions.who]\nmin_environments = 2\n", clock) as call:
        await until(lambda: environments(call, "who") == 2)
        assert (await call("depends", 1)).result[1:] == [1]
        await asyncio.gather(*(call("who", 0.1) for _ in range(4)))
        assert environments(call, "who") == 4
        clock.advance(IDLE - 1)
        assert (await call("depends", 2)).result[1:] == [1, 2]
        clock.advance(2)
        await until(lambda: environments(call, "who") == 2)
        assert environments(call, "depends") == 1
        clock.advance(IDLE)
        await until(lambda: environments(call, "depends") == 0)
        assert environments(call, "who") == 2
        pid = (await call("who", 0)).result[0]
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not lives(pid) and environments(call, "who") == 2)
    assert "closed\n" in capsys.readouterr().out  # what it depended on was closed


async def test_the_template_may_die(tmp_path: Path) -> None:
    async with isolated(tmp_path) as call:
        pid, template, _ = (await call("who", 0)).result
        running = asyncio.create_task(call("who", 60))
        await until(lambda: call.app.engine.lanes["who"].active)
        os.kill(template, signal.SIGKILL)
        assert (await running).error_type == "Runtime.ExitError"
        await until(lambda: not lives(pid))
        assert (await call("who", 0)).result[1] != template


async def test_stopping_ends_every_process(tmp_path: Path) -> None:
    async with isolated(tmp_path, "[app]\ndrain = 0\n") as call:
        pids = (await call("who", 0)).result[:2]
        running = asyncio.create_task(call("who", 2.5))
        await until(lambda: call.app.engine.lanes["who"].active)
    assert isinstance(await running, Interrupted)
    assert not any(map(lives, pids))


async def test_a_waiting_call_can_be_given_up(tmp_path: Path) -> None:
    async with isolated(tmp_path, "[app]\nprocesses = 1\n") as call:
        busy = asyncio.create_task(call("who", 0.3))
        await until(lambda: call.app.engine.lanes["who"].active)
        waiting = asyncio.create_task(call("who", 0))
        await until(lambda: call.app.engine.lanes["who"].active == 2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert isinstance(await busy, Succeeded)
        assert isinstance(await call("who", 0), Succeeded)


def test_handlers_that_no_other_process_can_import_are_refused(tmp_path: Path) -> None:
    @on(local("a"), isolation="process")
    def handler(payload: Any) -> None: ...

    with pytest.raises(ConfigError, match=r"test_process_runtime\.py:\d+: handler: to run in a process .* that another process can import"):
        make_app(tmp_path, handler)

    @on(local("a"))
    def other(payload: Any) -> None: ...

    assert make_app(tmp_path, other).functions["other"].isolation == "thread"


def test_options_that_go_with_processes_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="min_environments= of all functions come to 5, \\[app\\] processes is 4"):
        app_of(tmp_path, "[app]\nprocesses = 4\n[functions.echo]\nmin_environments = 5\n")

    @on(local("a"), min_environments=1)
    def handler(payload: Any) -> None: ...

    with pytest.raises(ConfigError, match="a handler must be one that another process can import"):
        make_app(tmp_path, handler)

    @on(local("a"), min_environments=1)
    async def inline(payload: Any) -> None: ...

    with pytest.raises(ConfigError, match='min_environments= needs isolation="process"'):
        make_app(tmp_path, inline)


async def test_an_app_that_the_template_can_not_load_is_an_error_at_start(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "import os\nfrom eventrouter import on\n"
        "os.environ['NEEDED']\n"
        "@on(isolation='process')\ndef handler(payload): ...\n"
    )  # fmt: skip
    os.environ["NEEDED"] = "1"
    try:
        app = app_of(tmp_path, "", None, str(tmp_path / "broken.py"))
    finally:
        del os.environ["NEEDED"]
    with pytest.raises(ConfigError, match=r"(?s)can't be loaded for isolated functions.*KeyError: 'NEEDED'"):
        async with app:
            pass


SERVED = """
import os, time
from eventrouter import on
from eventrouter_http import http

@on(http("POST /double"), isolation="process")
def double(number: int) -> dict:
    print("doubling", number)
    return {"twice": number * 2, "pid": os.getpid(), "template": os.getppid()}

@on(http("POST /hang"), isolation="process", timeout=60)
def hang(number: int) -> None:
    import subprocess
    with subprocess.Popen(["sleep", "1000"]) as child:
        open("child.txt", "w").write(f"{os.getpid()} {child.pid} .")
        child.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_router_leaves_no_process_behind(tmp_path: Path, number: int) -> None:
    (tmp_path / "app.py").write_text(SERVED)
    (tmp_path / "eventrouter.toml").write_text(
        "[http]\nport = 0\n[app]\ndrain = 0\n[functions.double]\non = [{ http = 'POST /again' }]\nenv = { A = 'b' }\n"
    )
    with Place(tmp_path) as place:
        alone = place.result("invoke", "double", "4")
        assert json.loads(alone.stdout)["twice"] == 8
        place.serve()
        served = json.loads(place.curl("/double", "-d", "21"))
        assert served["twice"] == 42
        place.says("doubling 21")
        assert json.loads(place.curl("/again", "-d", "3"))["twice"] == 6
        assert "expected int" in place.curl("/again", "-d", '"x"')
        said = place.run("invoke", "double", "5")
        assert "doubling 5" in said
        assert "REPORT RequestId" in said
        place.run("invoke", "hang", "1", "--async")
        wait_for(lambda: (tmp_path / "child.txt").exists() and (tmp_path / "child.txt").read_text().endswith("."))
        hanging = [int(pid) for pid in (tmp_path / "child.txt").read_text().split()[:2]]
        pids = [served["pid"], served["template"], *hanging]
        assert all(map(lives, pids))
        place.stop(number)
        wait_for(lambda: not any(map(lives, pids)))


CROWD = """
import ctypes, fcntl, os, signal, time
from eventrouter import on
from eventrouter_http import http

@on(http("POST /crowd"), isolation="process", timeout=60, retries=0)
def crowd(pairs: int) -> None:
    lives = os.open("lives", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    fcntl.flock(lives, fcntl.LOCK_EX)  # held until the last of them is gone
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(pairs):
        if os.fork() == 0:
            pair(lives)
    while True:
        time.sleep(1)

def pair(lives: int) -> None:
    # Each in a session of its own, and each makes the other anew when that is killed.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    os.setsid()
    said = False
    while True:
        signal.alarm(100)  # whatever the test comes to
        me = os.getpid()
        try:
            other = os.fork()
        except OSError:
            continue
        if other:
            if not said:
                os.write(lives, b".")
            os.wait()
        else:
            signal.alarm(100)
            os.setsid()
            ctypes.CDLL(None).prctl(1, signal.SIGUSR1, 0, 0, 0)  # when its parent dies
            if os.getppid() == me:
                signal.sigwait({signal.SIGUSR1})
        said = True

@on(http("POST /fork"))
async def fork() -> int:
    if (child := os.fork()) == 0:  # what the router has open, this has, too
        time.sleep(100)
        os._exit(0)
    return child
"""

WITHOUT_GROUPS = ["unshare", "--mount", "sh", "-c", 'umount -R /sys/fs/cgroup && exec "$@"', "-"]


@pytest.mark.parametrize("wrapper", [[], WITHOUT_GROUPS], ids=["", "without control groups"])
def test_a_killed_router_leaves_nothing_of_a_crowd_that_makes_up_for_its_dead(tmp_path: Path, wrapper: list[str]) -> None:
    (tmp_path / "app.py").write_text(CROWD)
    (tmp_path / "eventrouter.toml").write_text("[http]\nport = 0\n")
    with Place(tmp_path, wrapper) as place:
        place.serve()
        child = int(place.curl("/fork", "-d", ""))
        place.run("invoke", "crowd", "20", "--async")
        lives = tmp_path / "lives"
        wait_for(lambda: lives.exists() and lives.stat().st_size == 20)

        def ended() -> bool:
            with lives.open() as file, suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            return False

        assert not ended()
        place.stop(signal.SIGKILL)
        try:
            wait_for(ended)
        finally:
            os.kill(child, signal.SIGKILL)
