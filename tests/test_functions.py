import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from eventrouter import Idempotent, fixed, on, on_start, on_stop
from eventrouter.errors import ConfigError
from eventrouter.functions import Policy, UserImportError, collect, load
from support import local, module


def test_on_returns_the_very_function() -> None:
    def handler(event, context):  # type: ignore[no-untyped-def]
        return event["a"]

    marked = on(local("a"), timeout=5)(handler)
    assert marked is handler
    assert marked({"a": 1}, None) == 1


def test_stacked_marks_add_triggers_and_merge_keywords() -> None:
    @on(local("a"), timeout=5)
    @on(local("b"), retries=1, timeout=5)
    async def handler(payload: Any) -> None: ...

    found = collect([module(handler)]).functions["handler"]
    assert [str(t) for t in found.triggers] == ["local a", "local b"]
    assert (found.policy.timeout, found.policy.retries) == (5, 1)


def test_conflicting_keywords_name_both_places() -> None:
    with pytest.raises(
        ConfigError, match=r"test_functions\.py:\d+: handler: timeout=5 conflicts with timeout=6 at .*test_functions\.py:\d+"
    ):

        @on(local("a"), timeout=5)
        @on(local("b"), timeout=6)
        async def handler(payload: Any) -> None: ...


@pytest.mark.parametrize(
    ("keywords", "fault"),
    [
        ({"timout": 1}, "unknown keyword 'timout'; did you mean 'timeout'?"),
        ({"colour": 1}, "unknown keyword 'colour'; known: backoff, "),
        ({"timeout": 0}, "timeout=0: expected float > 0"),
        ({"timeout": 901}, "timeout=901: expected float <= 900"),
        ({"retries": 186}, "retries=186: expected int <= 185"),
        ({"retries": "2"}, "retries='2': expected int, got str"),
        ({"max_age": 59}, "max_age=59: expected float >= 60"),
        ({"concurrency": -1}, "concurrency=-1: expected int >= 0"),
        ({"isolation": "fork"}, "isolation='fork': invalid enum value 'fork'"),
        ({"tags": {"a": 1}}, "tags={'a': 1}: expected str, got int"),
        ({"backoff": "fixed(x)"}, "backoff 'fixed(x)'"),
    ],
)
def test_bad_keywords_name_the_line_and_the_culprit(keywords: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(__file__)}:\d+: .*{re.escape(fault)}"):
        on(local("a"), **keywords)


@pytest.mark.parametrize("wrong", [local, "a", None])
def test_on_takes_triggers_only(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="@on takes triggers"):
        on(wrong)


def test_on_marks_functions_only() -> None:
    with pytest.raises(ConfigError, match="@on marks functions"):
        on(local("a"))(type("Thing", (), {}))


def test_defaults_are_the_documented_ones() -> None:
    policy = Policy()
    assert (policy.timeout, policy.retries, policy.max_age, policy.concurrency) == (3, 2, 21600, None)
    assert str(policy.backoff) == "exponential(2, 10, 300)"


def test_collect_finds_each_function_once_in_order() -> None:
    @on(local("a"))
    async def second(payload: Any) -> None: ...

    @on(local("b"))
    def first(payload: Any) -> None: ...

    def plain() -> None: ...

    @on_start
    async def begin() -> None: ...

    @on_stop
    def end() -> None: ...

    found = collect([module(second, first, plain, begin, end), module(first, begin)])
    assert list(found.functions) == ["second", "first"]
    assert (found.starts, found.stops) == ([begin], [end])
    assert [f.isolation for f in found.functions.values()] == ["inline", "process"]


def test_two_functions_of_one_name_name_both_places() -> None:
    @on(local("a"), name="same")
    async def one(payload: Any) -> None: ...

    @on(local("b"), name="same")
    async def two(payload: Any) -> None: ...

    with pytest.raises(
        ConfigError, match=r"two functions are named 'same': .*test_functions\.py:\d+ and .*test_functions\.py:\d+; give one"
    ):
        collect([module(one, two)])


def test_overrides_win_over_the_decorator() -> None:
    @on(local("a"), timeout=5, retries=1)
    async def handler(payload: Any) -> None: ...

    found = collect([module(handler)], {"handler": {"timeout": 10, "backoff": "fixed(3)", "on": [local("b")]}}).functions["handler"]
    assert (found.policy.timeout, found.policy.retries, found.policy.backoff) == (10, 1, fixed(3))
    assert [str(t) for t in found.triggers] == ["local a", "local b"]


def test_an_override_of_no_function_is_an_error() -> None:
    @on(local("a"))
    async def handler(payload: Any) -> None: ...

    with pytest.raises(ConfigError, match=r"\[functions.handle\]: no such function; did you mean 'handler'"):
        collect([module(handler)], {"handle": {"timeout": 10}})
    with pytest.raises(ConfigError, match=r"\[functions.handler\]: unknown keyword 'retry'; did you mean 'retries'"):
        collect([module(handler)], {"handler": {"retry": 10}})


def test_generators_and_threads_that_make_no_sense_are_refused() -> None:
    @on(local("a"))
    async def stream(payload: Any) -> Any:
        yield 1

    @on(local("a"), isolation="thread")
    async def threaded(payload: Any) -> None: ...

    with pytest.raises(ConfigError, match="stream yields"):
        collect([module(stream)])
    with pytest.raises(ConfigError, match='drop isolation="thread"'):
        collect([module(threaded)])


def handlers(path: Path, name: str, more: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"from eventrouter import on\nfrom support import local\n{more}\n@on(local('a'))\nasync def {name}(payload): ...\n")
    return path


def names(modules: list[ModuleType]) -> list[str]:
    return list(collect(modules).functions)


def test_load_takes_files_folders_packages_and_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    handlers(tmp_path / "load_one.py", "one", "import load_neighbour\n")
    (tmp_path / "load_neighbour.py").write_text("")
    handlers(tmp_path / "load_folder" / "two.py", "two")
    handlers(tmp_path / "load_folder" / "test_two.py", "not_a_handler")
    handlers(tmp_path / "load_package" / "deep" / "three.py", "three", "from ..shared import x\n")
    for folder in (tmp_path / "load_package", tmp_path / "load_package" / "deep"):
        (folder / "__init__.py").write_text("")
    (tmp_path / "load_package" / "shared.py").write_text("x = 1\n")
    assert names(load("load_one.py", tmp_path)) == ["one"]
    assert names(load("load_folder", tmp_path)) == ["two"]
    assert names(load("load_package", tmp_path)) == ["three"]
    assert names(load("load_package.deep.three", tmp_path)) == ["three"]


def test_a_file_named_like_another_module_is_still_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    assert names(load("json.py", handlers(tmp_path / "json.py", "mine").parent)) == ["mine"]
    import json

    assert json.loads("1") == 1


@pytest.mark.parametrize(
    ("app", "fault"),
    [
        ("absent.py", "no such file"),
        ("absent/app", "no such file"),
        ("absent_module", "no module named 'absent_module'"),
        ("empty", "no Python files"),
    ],
)
def test_what_is_not_there_is_named(app: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=fault):
        load(app, tmp_path)


def test_an_error_in_the_users_module_is_kept(tmp_path: Path) -> None:
    (tmp_path / "broken_a.py").write_text("1 / 0\n")
    (tmp_path / "broken_b.py").write_text("import no_such_thing_at_all\n")
    with pytest.raises(UserImportError, match="ZeroDivisionError: division by zero") as caught:
        load("broken_a.py", tmp_path)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(UserImportError, match="no_such_thing_at_all"):
        load("broken_b.py", tmp_path)
    with pytest.raises(UserImportError, match="no_such_thing_at_all"):
        load("broken_b", tmp_path)


def test_only_who_waits_for_an_answer_gets_it_in_chunks() -> None:
    @on(local("a", mode="request"))
    async def stream(payload: Any) -> Any:
        yield 1

    @on(local("a", mode="request"))
    def plain(payload: Any) -> Any:
        yield 1

    @on(local("a", mode="request"), idempotent=Idempotent("$.id"))
    async def kept(payload: Any) -> Any:
        yield 1

    assert collect([module(stream)]).functions["stream"].streams
    with pytest.raises(ConfigError, match="plain yields; .* streams it as an `async def`"):
        collect([module(plain)])
    with pytest.raises(ConfigError, match="kept yields, so idempotent= has no result"):
        collect([module(kept)])
