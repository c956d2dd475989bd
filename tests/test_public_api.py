import subprocess
import sys

import pytest

import eventrouter

PUBLIC = {
    "App", "Batch", "Binding", "Clock", "Context", "Depends", "Endpoint", "Event", "EventRouterError", "Failed", "Finding", "Health",
    "HttpRequest",
    "Idempotent", "Interrupted", "Message", "Notice", "Outcome", "Part", "PartialFailure", "Plugin", "Queue",
    "QueueDepth", "Received", "Reject", "Response",
    "Retry", "Router", "Source", "Succeeded", "Terms", "TimedOut", "Trigger", "Wild", "Wildcards",
    "call_from_thread", "delays", "exponential", "fixed", "hookimpl", "invoke", "json_path", "lambda_", "new_id",
    "on", "on_start", "on_stop",
    "seconds",
}  # fmt: skip


def test_the_public_names_are_these() -> None:
    assert set(eventrouter.__all__) == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC - {"Outcome"}))
def test_every_public_name_is_documented(name: str) -> None:
    assert (getattr(eventrouter, name).__doc__ or "").strip(), name


@pytest.mark.parametrize("words", [["--help"], ["serve", "--help"], ["--version"]])
def test_help_loads_neither_sources_nor_the_journal(words: list[str]) -> None:
    code = f"import sys; from eventrouter.cli import run; run({words!r}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert "eventrouter" in loaded
    assert not loaded & {"aiohttp", "paho", "watchdog", "apsw", "uvloop", "cronsim", "pydantic", "rich"}
