"""Functions of other languages, each by a real program of its own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from eventrouter import App, Event, Failed, Outcome, Succeeded, TimedOut
from eventrouter.config import load_config
from eventrouter.errors import ConfigError
from eventrouter.plugins import load_plugins
from eventrouter.runtimes.runtime_api import LIMIT
from servers import program
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
    (folder / "eventrouter.toml").write_text(f"[journal]\nurl = 'memory'\n{settings}")
    plugins = load_plugins()
    return App(config=load_config(plugins.by_name, folder=folder), plugins=plugins)


@asynccontextmanager
async def running(folder: Path, settings: str) -> AsyncIterator[Callable[..., Any]]:
    async with app_of(folder, settings) as app:

        async def call(name: str, payload: Any = None) -> Outcome:
            return await app.run_now(name, Event("invoke", "lambda.invoke", name, json.dumps(payload).encode()), {})

        yield call


async def test_the_same_in_every_language(tmp_path: Path, language: str, settings: str) -> None:
    async with running(tmp_path, settings) as call:
        for payload in ({"a": [1, 2.5, "ä\n\"", None, True, {"b": {}}, []]}, {"text": "x" * 5_900_000}):
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
