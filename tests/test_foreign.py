"""Functions of other languages, each by a real program of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientPayloadError, ClientSession

from eventrouter import App, Event, Failed, Outcome, Succeeded, TimedOut, on
from eventrouter.config import load_config
from eventrouter.errors import ConfigError
from eventrouter.plugins import load_plugins
from eventrouter.runtimes.runtime_api import LIMIT
from http_support import url_of
from servers import program
from support import until
from test_process_runtime import lives

FUNCTIONS = Path(__file__).parent / "data" / "functions"
# By language: how its five handlers are named, the error type of the one that fails, the program that it needs, in which package.
LANGUAGES = {
    "python": ("handlers.%s", "LookupError", None),
    "nodejs": ("index.%s", "RangeError", ("node", "nodejs")),
    "java": ("example.Handlers::%s", "java.lang.IllegalStateException", ("javac", "default-jdk-headless")),
    "go": ("main.%s", "Go.Error", ("go", "golang-go")),
    "provided": ("x.%s", "Shell.Error", ("curl", "curl")),
}
HANDLERS = ("echo", "introspect", "fails", "hangs", "large")


@pytest.fixture(scope="session")
def go_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("go")
    environ = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod"}
    command = [program("go", "golang-go"), "build", "-o", str(folder / "bootstrap"), "."]
    subprocess.run(command, cwd=FUNCTIONS / "go", env=environ, check=True, timeout=300)
    return folder


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def settings(language: str, request: pytest.FixtureRequest) -> str:
    """Tables of the five handlers."""
    named, _, needed = LANGUAGES[language]
    if needed is not None:
        program(*needed)
    code = request.getfixturevalue("go_code") if language == "go" else FUNCTIONS / language
    return "".join(table(name, language, code, named % name, timeout=1 if name == "hangs" else 60) for name in HANDLERS)


def table(name: str, runtime: str, code: Path, handler: str, **more: Any) -> str:
    lines = [f"[functions.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in more.items())]
    return "\n".join([*lines, f"runtime = '{runtime}'", f"code = '{code}'", f"handler = '{handler}'\n"])


def app_of(folder: Path, settings: str) -> App:
    (folder / "eventrouter.toml").write_text(f"[http]\nport = 0\n[journal]\nurl = 'memory'\n{settings}")
    plugins = load_plugins()
    return App(config=load_config(plugins.by_name, folder=folder), plugins=plugins)


@asynccontextmanager
async def running(folder: Path, settings: str) -> AsyncIterator[Callable[..., Any]]:
    async with app_of(folder, settings) as app:

        async def call(name: str, payload: Any = None) -> Outcome:
            return await app.run_now(name, Event("invoke", "lambda.invoke", name, json.dumps(payload).encode()), {})

        yield call


def test_the_same_in_every_language(tmp_path: Path, language: str, settings: str) -> None:
    asyncio.run(_the_same(tmp_path, language, settings))  # on one loop: the router's part is the same for all, and was tested on both


async def _the_same(tmp_path: Path, language: str, settings: str) -> None:
    async with running(tmp_path, settings) as call:
        for payload in ({"a": [1, 2.5, 'ä\n"', None, True, {"b": {}}, []]}, {"text": "x" * 5_900_000}):
            assert await call("echo", payload) == Succeeded(payload)
        told = (await call("introspect", {"k": 1})).result
        assert (told["event"], told["name"]) == ({"k": 1}, "introspect")
        assert told["id"]
        assert 0 < told["left"] <= 60_000
        environ = told["environ"]
        assert environ["AWS_LAMBDA_FUNCTION_NAME"] == "introspect"
        assert environ["_HANDLER"].endswith("introspect")
        assert Path(environ["LAMBDA_TASK_ROOT"]).is_dir()
        assert environ["AWS_REGION"] == "local"
        for _ in range(2):
            failed = await call("fails")
            assert (failed.error_type, failed.error_message) == (LANGUAGES[language][1], "no such thing")
        assert await call("hangs") == TimedOut(1)
        assert await call("hangs") == TimedOut(1)
        assert await call("large", {"size": LIMIT - 2}) == Succeeded("x" * (LIMIT - 2))
        words = f"Response payload size ({LIMIT + 1} bytes) exceeded maximum allowed payload size ({LIMIT} bytes)."
        assert await call("large", {"size": LIMIT - 1}) == Failed("Function.ResponseSizeTooLarge", words)
        assert await call("large", {"size": 2}) == Succeeded("xx")


# Node.js, by the bootstrap that comes with eventrouter

NODE = """
exports.waits = (event, context, callback) => {
  callback(null, "called back");
  setTimeout(() => console.log("later"), 50);
};
exports.hurries = (event, context, callback) => {
  context.callbackWaitsForEmptyEventLoop = false;
  callback(null, "called back");
  setTimeout(() => console.log("never seen in time"), 100_000);
};
exports.succeeds = (event, context) => context.succeed("succeeded");
exports.fails = (event, context) => context.fail("a text");
exports.forgets = () => "a result that nobody gets";
exports.throws = () => {
  throw new TypeError("at once");
};
exports.rejects = async () => Promise.reject(null);
exports.circular = async () => {
  const it = {};
  it.it = it;
  return it;
};
exports.uncaught = (event, context, callback) => {
  setTimeout(() => {
    throw new RangeError("out of reach");
  }, 1);
};
exports.unhandled = async () => {
  Promise.reject(new RangeError("out of reach"));
  await new Promise((done) => setTimeout(done, 1000));
};
exports.exits = async () => process.exit(7);
exports.deep = { er: { handler: async () => "deeper" } };
exports.streams = awslambda.streamifyResponse(async (event, stream) => {
  stream.write("one ");
  stream.end("two");
});
exports.answers = awslambda.streamifyResponse(async (event, stream) => {
  const http = awslambda.HttpResponseStream.from(stream, { statusCode: 201, headers: { "x-a": "b" } });
  http.end("made");
});
exports.breaks = awslambda.streamifyResponse(async (event, stream) => {
  stream.write("one ");
  throw new TypeError("amid it");
});
exports.cannot = awslambda.streamifyResponse(async () => {
  throw new TypeError("before it");
});
"""
HTTP = {"statusCode": 201, "headers": {"x-a": "b"}, "body": "bWFkZQ==", "isBase64Encoded": True}
OUTCOMES = [
    ("waits", "called back"),
    ("hurries", "called back"),
    ("succeeds", "succeeded"),
    ("forgets", None),
    ("deep.er.handler", "deeper"),
    ("streams", "one two"),
    ("answers", HTTP),
    ("fails", ("string", "a text")),
    ("throws", ("TypeError", "at once")),
    ("rejects", ("object", "null")),
    ("circular", ("Runtime.MarshalError", "Unable to marshal response: Converting circular structure")),
    ("uncaught", ("RangeError", "out of reach")),
    ("unhandled", ("Runtime.UnhandledPromiseRejection", "out of reach")),
    ("exits", ("Runtime.ExitError", "Runtime exited with error: exit status 7")),
    ("breaks", ("TypeError", "amid it")),
    ("cannot", ("TypeError", "before it")),
]


async def test_what_node_handlers_come_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "index.js").write_text(NODE)
    names = [name for name, _ in OUTCOMES]
    settings = "".join(table(name.partition(".")[0], "nodejs", tmp_path, f"index.{name}", timeout=60) for name in names)
    async with running(tmp_path, settings) as call:
        for name, expected in OUTCOMES:
            for _ in range(2):  # what ends the process must not be at the next one's expense
                outcome = await call(name.partition(".")[0])
                if isinstance(expected, tuple):
                    assert outcome.error_type == expected[0]
                    assert expected[1] in outcome.error_message
                else:
                    assert outcome == Succeeded(expected), name
    assert capsys.readouterr().out.count("later") == 2


STREAMS = """
const { existsSync } = require("node:fs");
const exists = async (file) => {
  while (!existsSync(file)) await new Promise((done) => setTimeout(done, 5));
};
exports.made = awslambda.streamifyResponse(async (event, stream) => {
  const head = { statusCode: 201, headers: { "x-a": "b", "x-n": 1 }, cookies: ["a=1", "b=2"] };
  stream = awslambda.HttpResponseStream.from(stream, head);
  stream.write("one ");
  await exists(event.queryStringParameters.file);
  stream.end("two");
});
exports.plain = awslambda.streamifyResponse(async (event, stream) => {
  stream.setContentType("text/html");
  for (let n = 0; n < 200; n++) {
    if (!stream.write("x".repeat(100_000))) await new Promise((done) => stream.once("drain", done));
  }
  stream.end();
});
exports.breaks = awslambda.streamifyResponse(async (event, stream) => {
  stream.write("one ");
  await exists(event.queryStringParameters.file);
  throw new TypeError("amid it");
});
exports.headless = awslambda.streamifyResponse(async (event, stream) => {
  stream.setContentType("application/vnd.awslambda.http-integration-response");
  stream.end("no head");
});
"""


async def test_a_streamed_answer_goes_out_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "index.js").write_text(STREAMS)
    names = ("made", "plain", "breaks", "headless")
    tables = "".join(
        table(name, "nodejs", tmp_path, f"index.{name}", timeout=60) + f'on = [{{ http = "GET /{name}" }}]\n' for name in names
    )
    async with app_of(tmp_path, tables) as app, ClientSession(url_of(app)) as session:
        async with session.get("/made", params={"file": str(tmp_path / "made")}) as answer:
            assert (answer.status, answer.headers["x-a"], answer.headers["x-n"]) == (201, "b", "1")
            assert answer.headers.getall("Set-Cookie") == ["a=1", "b=2"]
            assert await answer.content.readany() == b"one "
            (tmp_path / "made").touch()
            assert await answer.read() == b"two"
        async with session.get("/plain") as answer:  # more than an answer may have that is handed over as a whole
            assert (answer.status, answer.content_type) == (200, "text/html")
            assert len(await answer.read()) == 20_000_000
        async with session.get("/breaks", params={"file": str(tmp_path / "broken")}) as answer:
            assert await answer.content.readany() == b"one "
            (tmp_path / "broken").touch()
            with pytest.raises(ClientPayloadError):
                await answer.read()
        async with session.get("/headless") as answer:
            assert answer.status == 500
        async with session.get("/plain") as answer:
            assert await answer.content.read(1) == b"x"
        for _ in range(2):  # who goes away leaves the next one an environment that works
            async with session.get("/plain") as answer:
                assert len(await answer.read()) == 20_000_000
        lanes = app.engine.lanes
        assert [(lanes[name].succeeded, lanes[name].failed) for name in ("made", "breaks", "headless")] == [(1, 0), (0, 1), (0, 1)]


MODULES = {
    "cjs.cjs": "exports.handler = async () => 'cjs'",
    "esm.mjs": "import { readFile } from 'node:fs/promises'; await readFile(import.meta.filename ?? '/dev/null');"
    "export const handler = async () => 'esm'",
    "typed/package.json": '{"type": "module"}',
    "typed/index.js": "export const handler = async () => 'typed'",
    "node_modules/packed/index.js": "exports.handler = async () => 'packed'",
    "broken.js": "exports.handler = async () => {",
    "needs.js": "require('nowhere')",
    "raises.js": "throw new RangeError('while it is loaded')",
    "value.js": "exports.handler = 1",
}


def test_how_node_handlers_are_found(tmp_path: Path) -> None:
    for name, text in MODULES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    _finds(
        tmp_path,
        "nodejs",
        ("cjs.handler", "cjs"),
        ("esm.handler", "esm"),
        ("typed/index.handler", "typed"),
        ("packed.handler", "packed"),
        ("nothing.handler", ("Runtime.ImportModuleError", "Cannot find module 'nothing'")),
        ("needs.handler", ("Runtime.ImportModuleError", "Cannot find module 'nowhere'")),
        ("broken.handler", ("Runtime.UserCodeSyntaxError", "SyntaxError: Unexpected end of input")),
        ("raises.handler", ("RangeError", "while it is loaded")),
        ("value.handler", ("Runtime.HandlerNotFound", "value.handler is not a function")),
        ("value.other", ("Runtime.HandlerNotFound", "value.other is undefined or not exported")),
        ("value", ("Runtime.MalformedHandlerName", "Bad handler 'value'")),
        ("../x.handler", ("Runtime.MalformedHandlerName", "Bad handler '../x.handler'")),
    )


EVENT = [3, -1.5, "\u00e4\U0001f600"]
JAVA = """
import java.io.*;
import java.util.*;
interface Logger { void log(String text); }
interface Context { Logger getLogger(); }
public class Streams {
    public void handleRequest(InputStream in, OutputStream out, Context context) throws IOException {
        context.getLogger().log("logged");
        in.transferTo(out);
    }
    public List<Object> list(List<Object> numbers) { Collections.reverse(numbers); return numbers; }
    public Object unfit(Date date) { return null; }
    public Object odd(Object event) { return new Date(); }
}
"""


def test_how_java_handlers_are_found(tmp_path: Path) -> None:
    (tmp_path / "Streams.java").write_text(JAVA)
    _finds(
        tmp_path,
        "java",
        ("Streams", EVENT),
        ("Streams::list", EVENT[::-1]),
        ("Streams::unfit", ("Runtime.HandlerNotFound", "nothing fills parameter 1")),
        ("Streams::odd", ("Runtime.MarshalError", "a java.util.Date is no JSON")),
        ("Nothing", ("Runtime.ImportModuleError", "Class not found: Nothing")),
    )


def test_compiled_java_needs_no_source(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/Streams.java").write_text(JAVA)
    command = [program("javac", "default-jdk-headless"), "-d", str(tmp_path), str(tmp_path / "source/Streams.java")]
    subprocess.run(command, check=True, timeout=60)
    shutil.rmtree(tmp_path / "source")
    (tmp_path / "Broken.java").write_text("class Broken {")
    _finds(tmp_path, "java", ("Streams::list", EVENT[::-1]), ("Nothing", ("Runtime.UserCodeSyntaxError", "Broken.java")))


def _finds(code: Path, runtime: str, *handlers: tuple[str, Any]) -> None:
    """Each comes to that: a result, or the type of an error and words of its message."""

    async def find() -> None:
        settings = "".join(table(f"f{place}", runtime, code, handler, timeout=60) for place, (handler, _) in enumerate(handlers))
        async with running(code, settings) as call:
            outcomes = await asyncio.gather(*(call(f"f{place}", EVENT) for place in range(len(handlers))))
        for (handler, result), outcome in zip(handlers, outcomes, strict=True):
            if isinstance(result, tuple):
                assert (handler, outcome.error_type) == (handler, result[0])
                assert result[1] in outcome.error_message
            else:
                assert (handler, outcome) == (handler, Succeeded(result))

    asyncio.run(find())


# Amazon's own client for Node.js, which has to be compiled: where somebody has installed it


def test_the_official_client_for_node(tmp_path: Path) -> None:
    client = shutil.which("aws-lambda-ric")
    if client is None:
        pytest.skip("npm install --global aws-lambda-ric, which takes minutes, puts it on PATH")
    tables = []
    for name in HANDLERS:
        seconds = 1 if name == "hangs" else 60
        tables.append(table(name, "nodejs", FUNCTIONS / "nodejs", f"index.{name}", command=[client, f"index.{name}"], timeout=seconds))
    asyncio.run(_the_same(tmp_path, "nodejs", "".join(tables)))


# What holds for every program

ATTACK = """
import http.client, os
from pathlib import Path

def attack(event, context):
    listening = {line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"}
    own = int(os.environ["AWS_LAMBDA_RUNTIME_API"].partition(":")[2])
    ports = {int(each.partition(":")[2], 16) for each in listening if each.startswith("0100007F")} - {own}
    said = {}
    for port in sorted(ports):
        for method, path in (
            ("POST", f"invocation/{event}/response"),
            ("POST", f"invocation/{event}/error"),
            ("POST", "init/error"),
            ("GET", "invocation/next"),
        ):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request(method, "/2018-06-01/runtime/" + path, b'"forged"' if method == "POST" else None)
                answer = connection.getresponse()
                said[f"{port} {path}"] = (answer.status, answer.read().decode(errors="replace"))
            except OSError:
                pass
    return said
"""
VICTIM = """
const fs = require("node:fs");
exports.victim = async (event, context) => {
  fs.writeFileSync("id.txt", context.awsRequestId);
  while (!fs.existsSync("go.txt")) await new Promise((done) => setTimeout(done, 10));
  return "its own";
};
"""


async def test_no_sibling_can_answer_for_another(tmp_path: Path) -> None:
    (tmp_path / "attack.py").write_text(ATTACK)
    (tmp_path / "index.js").write_text(VICTIM)
    settings = table("attack", "python", tmp_path, "attack.attack", timeout=60)
    async with running(tmp_path, settings + table("victim", "nodejs", tmp_path, "index.victim", timeout=60)) as call:
        victim = asyncio.create_task(call("victim"))
        await until(lambda: (tmp_path / "id.txt").exists() and (tmp_path / "id.txt").read_text() != "")
        said = (await call("attack", (tmp_path / "id.txt").read_text())).result
        refused = [status for status, text in said.values() if status == 403 and "another environment's" in text]
        assert len(refused) == 4, said
        assert not victim.done()
        (tmp_path / "go.txt").touch()
        assert await victim == Succeeded("its own")


SHELL = """#!/bin/sh
api=http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime
next() {
    curl -sS -D head -o event "$api/invocation/next"
    id=$(sed -n 's/^Lambda-Runtime-Aws-Request-Id: *\\([^[:cntrl:]]*\\).*/\\1/pI' head)
}
answer() { curl -sS -o /dev/null -d "$1" "$api/invocation/$id/response"; }
"""


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("exit 3", ("Runtime.ExitError", "exit status 3")),
        ("exit 0", ("Runtime.ExitError", "without providing a reason")),
        ("kill -9 $$", ("Runtime.ExitError", "signal: killed")),
        ("next; exit 4", ("Runtime.ExitError", "exit status 4")),
        ("next; kill -11 $$", ("Runtime.ExitError", "signal: segmentation fault")),
        ("next; answer 1; exit 5", 1),
        ("while next; do answer 1; done", 1),
        ("trap '' TERM; next; while :; do sleep 1; done", TimedOut(1)),
        (
            'curl -sS -d \'{"errorType": "Mine", "errorMessage": "not today"}\' "$api/init/error"; exit 1',
            ("Mine", "not today"),
        ),
    ],
)
async def test_how_programs_end(tmp_path: Path, capsys: pytest.CaptureFixture[str], script: str, expected: Any) -> None:
    (tmp_path / "bootstrap").write_text(f"{SHELL}echo pid $$\n{script}\n")
    (tmp_path / "bootstrap").chmod(0o755)
    settings = f"[functions.it]\nruntime = 'provided'\ncode = '{tmp_path}'\ntimeout = {1 if isinstance(expected, TimedOut) else 60}\n"
    async with running(tmp_path, settings) as call:
        for _ in range(2):
            outcome = await call("it")
            if isinstance(expected, tuple):
                assert outcome.error_type == expected[0]
                assert expected[1] in outcome.error_message
            else:
                assert outcome == (expected if isinstance(expected, TimedOut) else Succeeded(expected))
    pids = [int(pid) for pid in re.findall(r"pid (\d+)", capsys.readouterr().out)]
    assert pids
    await until(lambda: not any(map(lives, pids)))


def test_a_program_that_never_asks_is_ended_by_its_time_out(tmp_path: Path) -> None:
    settings = f"[functions.it]\ncommand = ['sleep', '60']\ncode = '{tmp_path}'\ntimeout = 1\n"

    async def run() -> None:
        async with running(tmp_path, settings) as call:
            assert await call("it") == TimedOut(1)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            "runtime = 'nodejs20.x'",
            r"\[functions.it\] runtime='nodejs20.x': .*did you mean 'nodejs'\?; the version is that of what is installed",
        ),
        ("runtime = 'nodejs'", r"\[functions.it\]: handler= is missing"),
        ("handler = 'a.b'\ncode = 'nowhere'", r"\[functions.it\] code: .*/nowhere is no folder"),
        ("runtime = 'provided'", r"\[functions.it\]: .*/bootstrap is no program that can be run; put it there and make it executable"),
        ("runtime = 'go'", r"/bootstrap is no program that can be run; build it there with `go build -o bootstrap`"),
        ("command = ['./plain.txt']", r"/plain.txt is no program that can be run"),
        ("command = ['no-such-program']", r"there is no 'no-such-program' on this machine's PATH; install it, or name another"),
        ("command = []", r"\[functions.it\]: command=\[\]: "),
        ("runtime = 'provided'\nisolation = 'inline'", r"\[functions.it\]: isolation='inline': what is no Python runs in a process"),
        ("runtime = 'provided'\nname = 'other'", r"\[functions.it\] name: the table's own name is the function's"),
        ("runtime = 'provided'\non = [{ http = 'nonsense' }]", r"\[functions.it\] on: "),
        ("timeout = 5", r"\[functions.it\]: no such function"),
    ],
)
def test_what_can_not_be_run_is_an_error_at_load(tmp_path: Path, settings: str, words: str) -> None:
    (tmp_path / "plain.txt").touch()
    if settings.startswith("timeout"):
        (tmp_path / "app.py").touch()
    with pytest.raises(ConfigError, match=words):
        app_of(tmp_path, f"[functions.it]\n{settings}\n")


def test_a_missing_interpreter_is_an_error_at_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for runtime, needed in (("nodejs", "node"), ("java", "java")):
        with pytest.raises(ConfigError, match=f"there is no '{needed}' on this machine's PATH; install it"):
            app_of(tmp_path, table("it", runtime, tmp_path, "index.handler"))
    (tmp_path / "java").touch(0o755)
    with pytest.raises(ConfigError, match="is of a JRE, which can't compile; install a JDK"):
        app_of(tmp_path, table("it", "java", tmp_path, "index.handler"))


def test_python_functions_have_no_runtime(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"test_foreign.py:\d+: runtime= belongs into \[functions.NAME\]"):
        on(runtime="nodejs")  # type: ignore[call-arg]
    (tmp_path / "app.py").write_text("from eventrouter import on\n@on()\nasync def it(event, context): ...\n")
    with pytest.raises(ConfigError, match=r"\[functions.it\] handler: it is a Python function, at .*app.py:2; drop it, or rename"):
        app_of(tmp_path, "[functions.it]\nhandler = 'index.handler'\n")
    assert list(app_of(tmp_path, "[functions.other]\ncommand = ['true']\n").functions) == ["it", "other"]


def test_an_app_without_python_needs_no_app_py(tmp_path: Path) -> None:
    app = app_of(tmp_path, "[functions.it]\ncommand = ['true']\non = [{ http = 'GET /it' }, { cron = '0 7 * * *' }]\n")
    (function,) = app.functions.values()
    assert (function.is_lambda, function.isolation, len(function.triggers)) == (True, "process", 2)
    with pytest.raises(ConfigError, match="app.py: no such file"):
        app_of(tmp_path, "")
