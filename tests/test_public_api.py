import subprocess
import sys
from pathlib import Path

import pytest

import eventrouter

PUBLIC = {
    "App", "Batch", "Binding", "Clock", "Context", "Depends", "Endpoint", "Event", "EventRouterError", "Failed", "Finding", "Health",
    "HttpRequest",
    "Idempotent", "Interrupted", "Message", "Network", "Notice", "Outcome", "Part", "PartialFailure", "Plugin", "Queue",
    "QueueDepth", "Received", "Reject", "Response",
    "Retry", "Role", "Router", "Secret", "Source", "Standing", "Succeeded", "Terms", "TimedOut", "Trigger", "Wild", "Wildcards",
    "allow", "call_from_thread", "delays", "deny", "egress", "exponential", "fixed", "hookimpl", "invoke", "json_path", "lambda_", "new_id",
    "on", "on_start", "on_stop",
    "seconds",
}  # fmt: skip


def test_the_public_names_are_these() -> None:
    assert set(eventrouter.__all__) == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC - {"Outcome"}))
def test_every_public_name_is_documented(name: str) -> None:
    assert (getattr(eventrouter, name).__doc__ or "").strip(), name


HEAVY = {"aiohttp", "paho", "watchdog", "apsw", "uvloop", "cronsim", "cryptography", "jwt", "sqlite3", "psycopg", "pydantic", "rich"}


def loaded(code: str, folder: Path) -> set[str]:
    """The top-level modules that are there after `code`."""
    code += "\nprint(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", f"import sys\n{code}"], cwd=folder, capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "code",
    ["import eventrouter"]
    + [f"from eventrouter.cli import run; run({words!r})" for words in (["--help"], ["serve", "--help"], ["--version"])],
)
def test_help_loads_neither_sources_nor_the_journal(code: str, tmp_path: Path) -> None:
    found = loaded(code, tmp_path)
    assert "eventrouter" in found
    assert not found & HEAVY


def test_a_router_loads_only_what_its_functions_need(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "from eventrouter import on\nfrom eventrouter_http import http\n@on(http('GET /'))\nasync def get(): ...\n"
    )
    (tmp_path / "eventrouter.toml").write_text("[http]\nport = 0\n")
    code = """
import asyncio
from eventrouter import App
async def main():
    async with App("app.py") as app:
        await app.supervisor.ready.wait()
asyncio.run(main())
"""
    found = loaded(code, tmp_path)
    assert "aiohttp" in found
    assert not found & {"paho", "watchdog", "cronsim", "cryptography", "jwt", "psycopg", "pydantic", "rich"}
