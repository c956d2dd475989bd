"""Handlers that mean harm, in real processes: each is held, and told as Lambda tells it, and the others go on."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from eventrouter import App, Event, Outcome, Succeeded, TimedOut
from eventrouter.config import load_config
from eventrouter.plugins import Plugins
from eventrouter.runtimes.confine import look
from served import Place
from support import until

HANDLERS = Path(__file__).with_name("hostile.py")
BOTH = pytest.mark.parametrize("how", ["", "_boxed"])
REFUSED = {"EPERM", "EACCES", "ENOENT", "EROFS", "ESRCH", "EINVAL", "EIO"}


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without the folders of other tests' apps: nobody else may read those, so no sandbox could."""
    base = tmp_path_factory.getbasetemp()
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not Path(entry).is_relative_to(base)])


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Callable[..., Any]]:
    """Yields what calls a function. The journal is a file, as users have it."""
    file = folder / "eventrouter.toml"
    file.write_text("[app]\nprocesses = 8\n")
    plugins = Plugins([])
    async with App(str(HANDLERS), config=load_config(plugins.by_name, file=file), plugins=plugins) as app:

        async def call(name: str, payload: Any = None) -> Outcome:
            return await app.run_now(name, Event("invoke", "lambda.invoke", name, json.dumps(payload).encode()), {})

        yield call


@BOTH
@pytest.mark.parametrize("name", ["spins_in_c", "ignores_sigterm"])
async def test_what_does_not_end_is_ended(tmp_path: Path, name: str, how: str) -> None:
    async with serving(tmp_path) as call:
        assert await call(name + how) == TimedOut(0.5)
        assert (await call("peaceful", 1)).result[2] == 1


def processes_of(folder: Path) -> list[str]:
    """What runs in groups of a router that has this data folder, its template and itself aside."""
    import hashlib

    key = hashlib.sha256(os.fsencode((folder / ".eventrouter").resolve())).hexdigest()[:16]
    found: list[str] = []
    for path in Path("/sys/fs/cgroup").glob(f"*/eventrouter-{key}/*/cgroup.procs"):
        with suppress(FileNotFoundError):  # the group goes while it is looked at
            found += path.read_text().split()
    return found


@pytest.mark.skipif("pids" not in look().groups, reason="without a control group it is bounded, too, but ends slowly on few cores")
@BOTH
async def test_a_fork_bomb_is_bounded_and_leaves_nothing(tmp_path: Path, how: str) -> None:
    async with serving(tmp_path) as call:
        assert await call("forks" + how) == TimedOut(2)
        await until(lambda: not processes_of(tmp_path))
        assert (await call("peaceful", 1)).result[2] == 1


@BOTH
async def test_too_much_memory_is_told_as_lambda_does(tmp_path: Path, how: str) -> None:
    async with serving(tmp_path) as call:
        assert await call("allocates" + how, 10) == Succeeded(10 << 20)
        failed = await call("allocates" + how, 200)
        assert (failed.error_type, failed.error_message.partition("Error: ")[2]) == (
            "Runtime.OutOfMemory",
            "Runtime exited with error: signal: killed",
        )
        assert await call("allocates" + how, 10) == Succeeded(10 << 20)
        assert (await call("has_a_child_allocate" + how)).result != 0


@BOTH
async def test_too_many_files_are_an_error_of_the_handlers(tmp_path: Path, how: str) -> None:
    async with serving(tmp_path) as call:
        assert await call("opens" + how) == Succeeded("EMFILE True")


@BOTH
async def test_the_routers_data_and_secrets_are_out_of_sight(tmp_path: Path, how: str) -> None:
    async with serving(tmp_path) as call:
        data = tmp_path / ".eventrouter"
        assert (data / "journal.db").exists()
        asked = {"data": str(data), "router": os.getpid(), "config": str(tmp_path / "eventrouter.toml")}
        found = (await call("reads" + how, asked)).result
        assert found.pop("listed") in ([], "EACCES", "ENOENT")
        assert found.pop("config") in ("", "EACCES", "ENOENT")
        for what in ("by root", "by cwd", "disks"):
            assert found.pop(what) == []
        assert set(found.values()) <= REFUSED, found


@BOTH
async def test_other_processes_are_out_of_reach(tmp_path: Path, how: str) -> None:
    async with serving(tmp_path) as call:
        sibling, template, _ = (await call("peaceful")).result
        found = (await call("seizes" + how, {"router": os.getpid(), "template": template, "sibling": sibling})).result
        for who, attempts in found.items():
            assert set(attempts.values()) <= REFUSED, (who, attempts)
        assert (await call("peaceful", 1)).result == [sibling, template, 1]


@BOTH
async def test_the_machine_is_out_of_reach(tmp_path: Path, how: str) -> None:
    async with serving(tmp_path) as call:
        found = (await call("changes_the_machine" + how)).result
        assert found.pop("groups") == []
        assert found.pop("capabilities") == ["0000000000000000"]
        assert found.pop("privileges") == "1"
        user = found.pop("user")
        assert (user != os.getuid()) is bool(how and os.getuid() == 0)
        assert set(found.values()) <= REFUSED, found


async def test_what_a_sandbox_writes_is_its_own(tmp_path: Path) -> None:
    async with serving(tmp_path) as call:
        plain = (await call("writes", {"folder": str(tmp_path)})).result
        assert plain["beside the config"] == "written"
        boxed = (await call("writes_boxed", {"folder": str(tmp_path)})).result
        assert {boxed.pop("tmp"), boxed.pop("null")} == {"written"}
        assert set(boxed.values()) <= REFUSED, boxed
    for path in (Path("/tmp/eventrouter-test"), Path("/dev/shm/eventrouter-test"), Path("/etc/eventrouter-test")):
        path.unlink(missing_ok=True)


async def test_a_sandboxs_tmp_is_bounded_and_goes_with_it(tmp_path: Path) -> None:
    before = set(Path(tempfile.gettempdir()).iterdir())
    async with serving(tmp_path) as call:
        kind, megabytes = (await call("fills_boxed")).result
        assert kind in ("ENOSPC", "EFBIG")
        assert megabytes <= 512
    assert not [path for path in set(Path(tempfile.gettempdir()).iterdir()) - before if path.name == "0"]


BESIDE = """
from pathlib import Path
from eventrouter import on

@on(isolation="process", sandbox=True)
def look(payload):
    folder = Path(__file__).parent
    return [(folder / "app.py").read_text()[:5], [str(path) for path in folder.glob(".eventrouter/*")]]
"""


def test_a_data_folder_beside_the_code_is_out_of_sight_too(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(BESIDE)
    tmp_path.chmod(0o755)
    with Place(tmp_path) as place:
        assert json.loads(place.result("invoke", "look", "1").stdout) == ["\nfrom", []]


def test_the_control_socket_answers_who_can_read_the_data_folder(tmp_path: Path) -> None:
    import socket

    (tmp_path / "app.py").write_text(BESIDE)
    tmp_path.chmod(0o755)
    (tmp_path / "eventrouter.toml").write_text("[http]\nport = 0\n")
    with Place(tmp_path) as place:
        place.serve()
        assert (tmp_path / ".eventrouter/control.key").stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(str(tmp_path / ".eventrouter/control.sock"))
            end.sendall(b'{"command": "status", "arguments": {}}\n')
            assert b"only who can read the data folder" in end.recv(4096)


def test_the_app_may_not_be_in_the_data_folder(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(BESIDE)
    with Place(tmp_path) as place:
        assert "holds the app" in place.run("list", "--data", ".", code=2)
