from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventrouter import Plugin, on
from eventrouter.config import Config, load_config, seconds
from eventrouter.errors import ConfigError
from support import LOCAL, LocalConfig, local, make_app

PLUGINS = {"local": LOCAL}


def read(folder: Path, toml: str, **more: Any) -> Config:
    (folder / "eventrouter.toml").write_text(toml)
    return load_config(PLUGINS, folder=folder, **more)


def local_of(config: Config) -> LocalConfig:
    found = config.plugins["local"]
    assert isinstance(found, LocalConfig)
    return found


def test_defaults_without_a_file(tmp_path: Path) -> None:
    config = load_config(PLUGINS, folder=tmp_path)
    assert (config.app.drain, config.app.concurrency, config.app.modules) == (30, 1000, None)
    assert (config.journal.url, config.file, config.data) == ("sqlite", None, tmp_path / ".eventrouter")
    assert local_of(config).port == 1


def test_flag_over_environment_over_file_over_default(tmp_path: Path) -> None:
    toml = '[local]\nport = 2\ngreeting = "file"\n[local.rooms]\na = "1"\n'
    environ = {"EVENTROUTER_LOCAL__PORT": "3", "EVENTROUTER_LOCAL__ROOMS__B": "2", "EVENTROUTER_DEBUG": "1", "HOME": "/"}
    assert local_of(read(tmp_path, toml)).port == 2
    found = local_of(read(tmp_path, toml, environ=environ))
    assert (found.port, found.greeting, found.rooms) == (3, "file", {"a": "1", "b": "2"})
    assert local_of(read(tmp_path, toml, environ=environ, flags={"local": {"port": 4, "greeting": None}})).port == 4


class Room(msgspec.Struct):
    beds: int = 1


class OpenConfig(msgspec.Struct):
    """`[open.NAME]` for names of the user's, and `[open.rooms.NAME]`."""

    rooms: dict[str, Room] = {}
    named: dict[str, dict[str, Any]] = msgspec.field(name="*", default_factory=dict)


def test_a_section_may_have_tables_that_the_user_names(tmp_path: Path) -> None:
    (tmp_path / "eventrouter.toml").write_text('[open.GitHub]\na = "file"\nb = "file"\n[open.rooms.red]\nbeds = 2\n')
    environ = {"EVENTROUTER_OPEN__GITHUB__A": "environ", "EVENTROUTER_OPEN__OTHER__A": "1", "EVENTROUTER_OPEN__ROOMS__BLUE__BEDS": "3"}
    config = load_config({"open": Plugin(name="open", config=OpenConfig)}, folder=tmp_path, environ=environ)
    found = config.plugins["open"]
    assert isinstance(found, OpenConfig)
    assert found.named == {"GitHub": {"a": "environ", "b": "file"}, "other": {"a": "1"}}
    assert found.rooms == {"red": Room(2), "blue": Room(3)}


def test_environment_text_takes_the_fields_type(tmp_path: Path) -> None:
    environ = {"EVENTROUTER_APP__DRAIN": "1.5", "EVENTROUTER_APP__MODULES": '["a.py", "b.py"]', "EVENTROUTER_LOCAL__GREETING": "123"}
    config = read(tmp_path, "", environ=environ)
    assert (config.app.drain, config.app.modules, local_of(config).greeting) == (1.5, ("a.py", "b.py"), "123")


@pytest.mark.parametrize(
    ("toml", "fault"),
    [
        ("[locla]", r"eventrouter.toml: unknown section \[locla\]; did you mean 'local'\?"),
        ("[app]\ndrian = 3", r"eventrouter.toml: \[app\] unknown key 'drian'; did you mean 'drain'\?"),
        ("[app]\ndrain = 'x'", r"\[app\] drain: expected float, got str"),
        ("[app]\ndrain = -1", r"\[app\] drain: expected float >= 0"),
        ("[local]\nport = '80'", r"\[local\] port: expected int, got str"),
        ("[local.rooms]\na = 1", r"\[local\] rooms\[...\]: expected str, got int"),
        ("local = 3", r"local must be a table: \[local\]"),
        ("[functions]\nf = 1", r"functions.f must be a table"),
        ("[app", "not valid TOML"),
    ],
)
def test_faults_name_file_key_and_remedy(toml: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=fault):
        read(tmp_path, toml)


@pytest.mark.parametrize(
    ("variable", "value", "fault"),
    [
        ("EVENTROUTER_LOCLA__PORT", "1", "EVENTROUTER_LOCLA__PORT: unknown section 'locla'; did you mean 'local'"),
        ("EVENTROUTER_LOCAL__PROT", "1", "EVENTROUTER_LOCAL__PROT unknown key 'prot'; did you mean 'port'"),
        ("EVENTROUTER_LOCAL__PORT", "eighty", "EVENTROUTER_LOCAL__PORT port: expected int, got str"),
        ("EVENTROUTER_APP__MODULES", "[1", "EVENTROUTER_APP__MODULES: not valid TOML"),
    ],
)
def test_faults_name_the_variable(variable: str, value: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=fault):
        read(tmp_path, "", environ={variable: value})


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent.toml: No such file"):
        load_config(PLUGINS, file=tmp_path / "absent.toml")


def test_relative_paths_start_at_the_config_files_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "my.toml"
    file.write_text("")
    config = load_config(PLUGINS, file=file, flags={"app": {"data": "state"}})
    assert config.data == (tmp_path / "sub" / "state")
    assert load_config(PLUGINS, file=file, flags={"app": {"data": "/abs"}}).data == Path("/abs")


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("15m", 900), ("24h", 86400), ("7d", 604800), ("1.5h", 5400), ("5", 5), (3, 3)])
def test_durations(text: str | float, value: float) -> None:
    assert seconds(text, "x") == value


def test_a_bad_duration_is_named() -> None:
    with pytest.raises(ConfigError, match="dedupe: 'soon' is no duration"):
        seconds("soon", "dedupe")


@on(local("a"))
async def handler(payload: Any, y: str = "") -> None: ...


def test_functions_and_triggers_in_the_file(tmp_path: Path) -> None:
    app = make_app(
        tmp_path, handler, toml='[functions.handler]\ntimeout = 10\nbackoff = "fixed(1)"\non = [{ local = "b/{y}", mode = "event" }]\n'
    )
    found = app.functions["handler"]
    assert (found.policy.timeout, str(found.policy.backoff), [str(t) for t in found.triggers]) == (
        10,
        "fixed(1)",
        ["local a", "local b/{y}"],
    )


def test_the_environment_reaches_functions(tmp_path: Path) -> None:
    config = read(tmp_path, "[functions.handler]\ntimeout = 10", environ={"EVENTROUTER_FUNCTIONS__HANDLER__TIMEOUT": "20"})
    assert config.functions == {"handler": {"timeout": 20}}


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ('{ locla = "a" }', "no trigger is named 'locla'; did you mean 'local'"),
        ('{ local = "a", mod = 1 }', "local has no option 'mod'; did you mean 'mode'"),
        ('"a"', "is no trigger"),
    ],
)
def test_bad_triggers_in_the_file(entry: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"\[functions.handler\] on: .*{fault}"):
        make_app(tmp_path, handler, toml=f"[functions.handler]\non = [{entry}]\n")
