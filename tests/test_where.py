"""`where`, and triggers that carry a pattern: what an event must say for a function to get it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventrouter import App, Batch, Event, Trigger, on, patterns
from eventrouter.contents import Contents, looks_into_events
from eventrouter.errors import ConfigError
from eventrouter.functions import Function, Policy
from eventrouter.lanes import Lane
from eventrouter.limits import Pool
from eventrouter.operations import Operations, describe_function
from eventrouter.patterns import rules
from eventrouter.plugins import Plugins
from eventrouter_http import eventrouter_plugin as http_plugin
from eventrouter_sqs import Queue, sqs
from eventrouter_sqs import eventrouter_plugin as sqs_plugin
from served import Place
from support import LOCAL, LocalTrigger, local, make_app, put, running, until
from support import event as make_event

HOT = {"Records": {"celsius": [{"numeric": [">", 90]}]}}


async def counts(app: App, name: str) -> dict[str, int]:
    status = await Operations(app).status()
    return {"unmatched": status["unmatched"], **{k: status["functions"][name][k] for k in ("accepted", "succeeded", "filtered")}}


async def test_only_what_matches_is_work(tmp_path: Path) -> None:
    got: list[int] = []

    @on(local("a"), where=HOT)
    async def handler(reading: dict[str, int]) -> None:
        got.append(reading["celsius"])

    async with running(tmp_path, handler) as app:
        assert [await put(app, "a", {"celsius": celsius}) for celsius in (90, 91)] == [0, 1]
        assert await put(app, "a", "no object") == 0
        await until(lambda: got == [91])
        await until(lambda: app.engine.lanes["handler"].succeeded == 1)
        assert await counts(app, "handler") == {"unmatched": 2, "accepted": 1, "succeeded": 1, "filtered": 2}


async def test_each_function_has_its_own_where(tmp_path: Path) -> None:
    got: list[str] = []

    @on(local("a"), where=HOT)
    async def hot(reading: dict[str, int]) -> None:
        got.append("hot")

    @on(local("a"))
    async def every(reading: dict[str, int]) -> None:
        got.append("every")

    async with running(tmp_path, hot, every) as app:
        assert [await put(app, "a", {"celsius": celsius}) for celsius in (90, 91)] == [1, 2]
        await until(lambda: sorted(got) == ["every", "every", "hot"])
        assert (await counts(app, "hot"))["unmatched"] == 0


WHERES: list[dict[str, Any] | None] = [
    None,
    *({"Records": {"n": [n]}} for n in (1, 2)),
    {"Records": {"n": [{"numeric": [">", 1]}], "kind": [{"prefix": "a"}]}},
    {"Records": {"kind": [{"anything-but": ["a"]}]}},
    {"Records": {"kind": [{"exists": False}]}},
    {"Records": {"inner": {"n": [1]}}},  # a text that is an object
    {"$or": [{"Records": {"n": [3]}}, {"Records": {"kind": ["ab"]}}]},
]
TEXT = st.sampled_from(['{"n": 1}', "{", 1])
PAYLOADS = st.fixed_dictionaries(
    {}, optional={"n": st.sampled_from([1, 2, 3, "1"]), "kind": st.sampled_from(["a", "ab", None]), "inner": TEXT}
)


@given(
    asked=st.lists(st.tuples(st.sampled_from(WHERES), st.lists(st.integers(0, 5), min_size=1, max_size=3)), max_size=12),
    sent=st.lists(st.tuples(st.sampled_from(["a", "b"]), PAYLOADS | st.just(7)), max_size=5),
)
def test_many_asked_at_once_answer_as_one_by_one(asked: list[tuple[Any, list[int]]], sent: list[tuple[str, Any]]) -> None:
    def trigger(kind: int) -> Trigger:
        if kind == 5:
            return Matched({"n": [{"numeric": [">=", 2]}]})
        made = local(("a", "b", "{x}", "{y}", "{x}")[kind])
        if kind == 4:
            made.same = None  # it doesn't say that it is like others
        return made

    async def handler(payload: Any) -> None: ...

    lanes = []
    for number, (where, kinds) in enumerate(asked):
        policy = Policy(name=f"f{number}", where=where)
        lanes.append(Lane(f"f{number}", Function(handler, [trigger(kind) for kind in kinds], policy), policy, Pool(9), 9))
    contents = Contents(lanes)
    filtered = dict.fromkeys((lane.name for lane in lanes), 0)
    for subject, payload in sent:
        event = make_event(subject, payload)
        expected: list[Any] = []
        for lane in lanes:
            for each in lane.function.triggers:
                if (captures := each.wants(event)) is None or not looks_into_events(lane, each):
                    continue
                if lane.function.lets_in(each, event):
                    expected.append((lane.name, id(each), captures))
                else:
                    filtered[lane.name] += 1
        found = [(lane.name, id(trigger), captures) for lane, trigger, captures in contents.find(event)]
        assert sorted(found, key=str) == sorted(expected, key=str)
        assert {lane.name: lane.filtered for lane in lanes} == filtered


async def test_where_of_many_functions_is_not_asked_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[str] = []
    handlers = [numbered(f"f{n}", local("a"), got, where={"Records": {"n": [n]}}) for n in range(200)]
    for place, handler in enumerate(handlers):
        handler.__name__ = f"h{place}"
    calls: list[str] = []
    kind: Any
    for kind, name in ((rules, "fits"), (LocalTrigger, "captures"), (LocalTrigger, "aws_event")):
        real = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda *a, real=real, **k: calls.append(real.__qualname__) or real(*a, **k))
    async with running(tmp_path, *handlers) as app:
        assert await put(app, "a", {"n": 7}) == 1
        assert sorted(calls) == ["LocalTrigger.aws_event", "LocalTrigger.captures", "fits"]
        await until(lambda: got == ["f7"])
        assert (app.engine.lanes["f7"].filtered, app.engine.lanes["f8"].filtered) == (0, 1)


async def test_who_does_not_want_an_event_is_told_when_debugging(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    handlers = [numbered(f"f{n}", local("a"), [], where={"Records": {"n": [n]}}) for n in range(3)]
    for place, handler in enumerate(handlers):
        handler.__name__ = f"h{place}"
    caplog.set_level("DEBUG", "eventrouter")
    async with running(tmp_path, *handlers) as app:
        await put(app, "a", {"n": 1})
        said = [record.getMessage().split(" does ")[0] for record in caplog.records if getattr(record, "action", "") == "event.filtered"]
        assert said == ["f0", "f2"]


async def test_data_that_is_not_json_matches_nothing(tmp_path: Path) -> None:
    @on(local("a"), where=HOT)
    async def handler(data: bytes) -> None: ...

    deep = b'{"Records":' * 100_000
    async with running(tmp_path, handler) as app:
        for data in (b"\xff", b"", b"91", deep):
            assert await app.sources["local"].router.deliver([Event("local", "local.put", "a", data)]) == 0


async def test_what_was_accepted_runs_though_where_has_changed(tmp_path: Path) -> None:
    got: list[int] = []

    async def handler(reading: dict[str, int]) -> None:
        got.append(reading["celsius"])

    marked = on(local("a"), where=HOT)(handler)
    async with make_app(tmp_path, marked) as app:
        await app.engine.stop(0)
        assert await put(app, "a", {"celsius": 95}) == 1
    async with make_app(tmp_path, marked, toml="[functions.handler.where.Records]\ncelsius = [{ numeric = ['>', 99] }]"):
        await until(lambda: got == [95])


def test_where_comes_from_the_config_and_is_shown(tmp_path: Path) -> None:
    @on(local("a"), where={"Records": {"x": [1]}})
    async def handler(reading: dict[str, int]) -> None: ...

    app = make_app(tmp_path, handler, toml="[functions.handler.where.Records]\ncelsius = [{ numeric = ['>', 90] }]")
    assert describe_function(app.functions["handler"])["policy"]["where"] == HOT


def test_show_prints_where_as_json(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "from eventrouter import on\nfrom eventrouter_sqs import sqs\n\n"
        "@on(sqs('jobs'), where={'Records': {'body': {'n': [1]}}})\nasync def take(body: dict) -> None: ...\n"
    )
    with Place(tmp_path) as place:
        assert 'where {"Records":{"body":{"n":[1]}}}' in " ".join(place.run("show", "take").split())
        assert json.loads(place.run("list", "--json"))[0]["policy"]["where"] == {"Records": {"body": {"n": [1]}}}


def test_a_bad_pattern_is_an_error_at_load(tmp_path: Path) -> None:
    @on(local("a"), where={"Records": {"celsius": [{"numerc": [">", 90]}]}})
    async def handler(reading: dict[str, int]) -> None: ...

    with pytest.raises(ConfigError, match=r"test_where\.py:\d+: handler: where: \$\.Records\.celsius\[0\]: unknown operator 'numerc'; did"):
        make_app(tmp_path, handler)
    with pytest.raises(ConfigError, match=r"^\[functions\.handler\] where: \$\.a: an empty array"):
        make_app(tmp_path, handler, toml="[functions.handler]\nwhere = { a = [] }")
    with pytest.raises(ConfigError, match=r"where='x': expected object"):
        on(local("a"), where="x")  # type: ignore[typeddict-item]


async def test_a_request_that_does_not_match_finds_no_function(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    from aiohttp import ClientSession

    from eventrouter_http import http
    from eventrouter_http.source import HttpSource

    ran: list[str] = []

    @on(http("POST /now"), where={"body": {"n": [1]}})
    async def now(body: dict[str, int]) -> str:
        ran.append("now")
        return "yes"

    @on(http("POST /later", mode="event"), where={"headers": {"x-kind": ["a"]}})
    async def later(body: dict[str, int]) -> None:
        ran.append("later")

    plugins = Plugins([LOCAL, http_plugin()])
    async with make_app(tmp_path, now, later, toml="[http]\nport = 0", plugins=plugins) as app, ClientSession() as client:
        source = app.sources["http"]
        assert isinstance(source, HttpSource)

        async def post(path: str, body: dict[str, int], kind: str = "") -> tuple[int, str]:
            async with client.post(source.url + path, json=body, headers={"X-Kind": kind}) as answer:
                return answer.status, answer.content_type

        assert await post("/now", {"n": 1}) == (200, "text/plain")
        assert await post("/now", {"n": 2}) == (404, "application/problem+json")
        assert await post("/later", {}, "a") == (202, "application/json")
        assert await post("/later", {}, "b") == (404, "application/problem+json")
        await until(lambda: sorted(ran) == ["later", "now"])
        assert (await counts(app, "now"))["filtered"] == 1
        assert (await counts(app, "later"))["unmatched"] == 2


@pytest.mark.parametrize("batch", [None, Batch(10)])
async def test_what_does_not_match_in_a_queue_is_deleted(tmp_path: Path, batch: Batch | None) -> None:
    got: list[int] = []

    def take(body: Any) -> None:
        got.extend(each["n"] for each in (body if isinstance(body, list) else [body]))

    if batch is None:

        @on(sqs("jobs"), where={"Records": {"body": {"n": [{"numeric": [">", 1]}]}}})
        async def handler(body: dict[str, int]) -> None:
            take(body)
    else:

        @on(sqs("jobs"), where={"Records": {"body": {"n": [{"numeric": [">", 1]}]}}}, batch=batch)
        async def handler(body: list[dict[str, int]]) -> None:  # type: ignore[misc]
            take(body)

    plugins = Plugins([LOCAL, sqs_plugin()])
    async with make_app(tmp_path, handler, plugins=plugins) as app:
        for n in (1, 2, 3):
            await Queue("jobs").send({"n": n})
        await Queue("jobs").send("text")
        await until(lambda: sorted(got) == [2, 3])
        await until(lambda: app.engine.intake.queues["sqs:jobs"] is not None and app.engine.intake.queues["sqs:jobs"].filtered == 2)
        await app.journal.flush()
        await until(lambda: app.engine.intake.queues["sqs:jobs"].succeeded >= 1)  # type: ignore[union-attr]
        await app.journal.flush()
        assert (await app.journal.depth()).get("sqs:jobs", {}).get("waiting", 0) == 0


# Triggers with a pattern


class Matched(Trigger):
    source = "local"
    views = 0

    def __init__(self, pattern: dict[str, Any], subject: str = "a") -> None:
        self.content_pattern = patterns.compile(pattern)
        self.subject = subject
        self.path = (subject,)

    def captures(self, subject: str) -> Mapping[str, str] | None:
        return {} if subject == self.subject else None

    @staticmethod
    def view(event: Event) -> Any:
        Matched.views += 1
        return event.json()


def numbered(name: str, trigger: Trigger, got: list[str], **policy: Any) -> Any:
    async def handler(payload: Any) -> None:
        got.append(name)

    return on(trigger, name=name, **policy)(handler)


async def test_patterns_of_many_triggers_are_looked_through_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[str] = []
    tried: list[Any] = []
    handlers = [numbered(f"f{n}", Matched({"n": [n]}), got) for n in range(200)]
    handlers.append(numbered("all", Matched({"n": [{"exists": True}]}), got))
    handlers.append(numbered("plain", local("a"), got))
    handlers.append(numbered("elsewhere", Matched({"n": [7]}, "b"), got))
    for place, handler in enumerate(handlers):
        handler.__name__ = f"h{place}"
    fits = rules.fits
    monkeypatch.setattr(rules, "fits", lambda fields, found: tried.append(fields) or fits(fields, found))
    Matched.views = 0
    async with running(tmp_path, *handlers) as app:
        assert await put(app, "a", {"n": 7}) == 3
        assert (Matched.views, len(tried)) == (1, 2), "one view, and none of those that can't match"
        assert await put(app, "a", {"m": 7}) == 1
        assert await put(app, "a", [7]) == 1
        assert await app.sources["local"].router.deliver([Event("local", "local.put", "b", b"no JSON")]) == 0
        await until(lambda: sorted(got) == ["all", "f7", "plain", "plain", "plain"])
        assert app.engine.intake.unmatched == 1


async def test_what_the_journal_hands_back_is_matched_by_pattern_too(tmp_path: Path) -> None:
    got: list[str] = []

    async def handler(payload: Any) -> None:
        got.append(payload)

    marked = on(Matched({"n": [1]}), local("b"))(handler)
    async with make_app(tmp_path, marked) as app:
        await app.engine.stop(0)
        assert await put(app, "a", {"n": 1}) == 1
    async with make_app(tmp_path, marked):
        await until(lambda: got == [{"n": 1}])
