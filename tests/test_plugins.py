from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from eventrouter.errors import PluginError
from eventrouter.plugins import load_plugins

GOOD = """
from eventrouter import Plugin, hookimpl
@hookimpl
def eventrouter_plugin():
    return Plugin(name={name!r})
"""


def entry(folder: Path, name: str, code: str, monkeypatch: pytest.MonkeyPatch) -> EntryPoint:
    (folder / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    return EntryPoint(name, name, "eventrouter")


def test_the_first_party_plugins_are_installed_like_anybody_elses() -> None:
    plugins = load_plugins()
    assert {"cron", "http", "mqtt", "s3", "sns", "sqs"} <= set(plugins.by_name)
    assert {"cron", "rate", "at", "http", "mqtt", "s3", "sns", "sqs"} <= set(plugins.triggers)
    assert plugins.version("cron")


def test_a_third_partys_plugin_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = entry(tmp_path, "plug_good", GOOD.format(name="good"), monkeypatch)
    assert list(load_plugins([found]).by_name) == ["good"]


@pytest.mark.parametrize(
    ("name", "code", "fault"),
    [
        ("plug_import", "import nothing_like_this", "plugin 'plug_import' .* can't be loaded: ModuleNotFoundError.*; fix or uninstall it"),
        ("plug_none", "x = 1", "has no @hookimpl function named eventrouter_plugin"),
        (
            "plug_misspelt",
            "from eventrouter import hookimpl\n@hookimpl\ndef eventrouter_plugins(): ...",
            "implements a hook 'eventrouter_plugins' that does not exist; did you mean 'eventrouter_plugin'?",
        ),
        ("plug_args", "from eventrouter import hookimpl\n@hookimpl\ndef eventrouter_plugin(app): ...", "plug_args.*can't be loaded"),
        ("plug_answer", "from eventrouter import hookimpl\n@hookimpl\ndef eventrouter_plugin(): return 5", "returned 5, not a Plugin"),
        (
            "plug_raises",
            "from eventrouter import hookimpl\n@hookimpl\ndef eventrouter_plugin(): 1/0",
            "eventrouter_plugin.. failed: ZeroDivisionError",
        ),
    ],
)
def test_a_broken_plugin_fails_by_name(name: str, code: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PluginError, match=fault):
        load_plugins([entry(tmp_path, name, code, monkeypatch)])


def test_two_plugins_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = [entry(tmp_path, name, GOOD.format(name="twin"), monkeypatch) for name in ("plug_a", "plug_b")]
    with pytest.raises(PluginError, match="two plugins are named 'twin'"):
        load_plugins(pair)
