"""What the documents say is true: their code loads, their settings are accepted, their commands exist, their links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import socket
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest

from eventrouter import App, Event
from eventrouter.cli import cli
from eventrouter.config import load_config
from eventrouter.crashpoints import POINTS
from eventrouter.functions import Policy
from eventrouter.plugins import Plugins, load_plugins
from eventrouter.runtimes.netns import mechanism
from served import Place
from servers import free_port
from support import until

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def code(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[object]:
    return [pytest.param(text, id=f"{page.name}-{number}") for page in PAGES for number, text in enumerate(code(page, language), 1)]


def write(folder: Path, text: str) -> Path:
    """Under the name that its first line gives."""
    name = re.match(r"# (\w+\.py)\n", text)
    assert name, f"a block of Python begins with its file's name: {text[:40]!r}"
    file = folder / name[1]
    file.write_text(text)
    return file


def settings_below(text: str) -> str:
    """Those that stand right below a block of Python are for it."""
    below = re.compile(re.escape(text) + r"```\n\n```toml\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return next((found[1] for page in PAGES if (found := below.search(page.read_text()))), "")


@pytest.mark.parametrize("text", blocks("python"))
def test_python(text: str, tmp_path: Path) -> None:
    file = write(tmp_path, text)
    if "eventrouter_plugin" in text:
        return  # it has a test of its own
    if "network=" in text and not mechanism()[0]:
        pytest.skip(mechanism()[1])
    (tmp_path / "eventrouter.toml").write_text(settings_below(text))
    app = App(str(file), folder=tmp_path)
    marked = re.findall(r"^@on\(.*?^(?:async )?def (\w+)", text, re.MULTILINE | re.DOTALL)
    assert sorted(app.functions) == sorted(set(marked))
    for test in re.findall(r"^def (test_\w+)\(\)", text, re.MULTILINE):
        vars(app.modules[0])[test]()


@pytest.mark.parametrize("text", blocks("toml"))
def test_toml(text: str, tmp_path: Path) -> None:
    if text.startswith("# pyproject.toml"):
        assert tomllib.loads(text)["project"]["entry-points"]["eventrouter"]
        return
    (tmp_path / "eventrouter.toml").write_text(text)
    config = load_config(load_plugins().by_name, folder=tmp_path)
    for name, table in config.functions.items():
        assert set(table) <= {*Policy.__struct_fields__, "on"}, name


@pytest.mark.parametrize("text", blocks("sh"))
def test_commands(text: str) -> None:
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0].startswith("scripts/"):
            assert (ROOT / words[0]).stat().st_mode & 0o111, words[0]
        elif words and words[0] == "eventrouter":
            group: click.Command = cli
            at = 1
            while isinstance(group, click.Group):
                found = group.get_command(click.Context(group), words[at])
                assert found is not None, line
                group, at = found, at + 1
            group.make_context(group.name, words[at:])  # raises UsageError for what it does not know


async def test_functions_of_other_languages(tmp_path: Path) -> None:
    page = ROOT / "docs/languages.md"
    (tmp_path / "eventrouter.toml").write_text(code(page, "toml")[0] + "[http]\nport = 0\n")
    for text in (*code(page, "js"), *code(page, "java"), *code(page, "bash")):
        name, _, rest = text.partition("\n")
        file = tmp_path / name.split(" ", 1)[1]
        file.parent.mkdir(parents=True)
        file.write_text(rest)
        file.chmod(0o755)
    async with App(folder=tmp_path) as app:

        async def call(name: str, payload: bytes) -> Any:
            return (await app.run_now(name, Event("invoke", "lambda.invoke", name, payload), {})).result  # type: ignore[union-attr]

        assert await call("greet", b"{}") == {"statusCode": 200, "body": "Hello, world!"}
        assert (await call("count", b'{"a": 1, "b": 2}'))["keys"] == 2
        assert await call("shout", b'{"a": "hey"}') == {"A": "HEY"}


def test_links() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_table_of_keywords_is_the_policy() -> None:
    table = (ROOT / "docs/handlers.md").read_text().partition("## Policy")[2].partition("\n\n\n")[0]
    rows = re.findall(r"^\| (`.*?) \|.*?\| (.*?) \|$", table, re.MULTILINE)
    keywords = [name for names, _ in rows for name in re.findall(r"`(\w+)`", names)]
    assert sorted(keywords) == sorted(Policy.__struct_fields__)
    defaults = dict(rows)
    for field in ("timeout", "retries", "max_age"):
        assert float(defaults[f"`{field}`"]) == getattr(Policy(), field)
    assert defaults["`backoff`"] == f"`{Policy().backoff}`"


def test_the_table_of_crash_points_is_complete() -> None:
    table = (ROOT / "docs/reliability.md").read_text().partition("## Killed at named points")[2].partition("\n## ")[0]
    assert dict(re.findall(r"^\| `(\S+)` \| (.*?) \| .+ \|$", table, re.MULTILINE)) == POINTS


def test_the_picture_of_the_floors_is_the_house() -> None:
    from test_architecture import FLOORS

    picture = (ROOT / "docs/design.md").read_text().partition("## Floors")[2].partition("plugins/eventrouter")[0]
    for room in FLOORS:
        if room and room != "__main__":
            assert re.search(rf"\b{room}\b", picture), f"{room} is not in the picture"


def test_the_readme_app_does_what_it_says(tmp_path: Path) -> None:
    (text,) = code(ROOT / "README.md", "python")
    write(tmp_path, text)
    (tmp_path / "eventrouter.toml").write_text(f'[http]\nport = 0\n[mqtt]\nbroker = "embedded"\nport = {free_port()}\n')
    with Place(tmp_path) as place:
        place.serve()
        assert json.loads(place.curl("/devices/oven/readings", "-d", '{"celsius": 91}')) == {"device": "oven", "celsius": 91.0}
        assert json.loads(place.curl("/devices/oven/readings", "-d", '{"celsius": "hot"}'))["status"] == 400
        place.run("send", "mqtt", "sensors/oven/temperature", '{"celsius": 91}')
        place.says("too hot: oven")
        (tmp_path / "buckets/uploads/may.csv").write_text("x\n")
        place.says("may.csv")


async def test_the_plugin_of_the_docs_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = code(ROOT / "docs/plugins.md", "python")
    folder = tmp_path / "plugin"
    folder.mkdir()
    write(folder, text)
    monkeypatch.syspath_prepend(folder)
    import eventrouter_udp  # type: ignore[import-not-found]

    (tmp_path / "app.py").write_text(
        "from eventrouter import on\nfrom eventrouter_udp import udp\n\ngot = []\n\n"
        '@on(udp("greetings"))\nasync def greet(text: str) -> None:\n    got.append(text)\n'
    )
    (tmp_path / "eventrouter.toml").write_text("[udp]\nport = 0\n")
    plugins = Plugins([eventrouter_udp.eventrouter_plugin()])
    async with App(str(tmp_path / "app.py"), config=load_config(plugins.by_name, folder=tmp_path), plugins=plugins) as app:
        (line,) = app.sources["udp"].lines()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for message in (b"greetings from Berlin", b"complaints about Berlin"):
                sender.sendto(message, ("127.0.0.1", int(line.rpartition(" ")[2])))
        got = vars(app.modules[0])["got"]
        await until(lambda: got == ["from Berlin"] and app.engine.intake.unmatched == 1)
