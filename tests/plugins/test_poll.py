from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from eventrouter import App, Event, on
from eventrouter.clock import Clock, ManualClock
from eventrouter.errors import ConfigError
from eventrouter.plugins import Plugins
from eventrouter_webhook import PollTrigger, eventrouter_plugin, poll
from eventrouter_webhook.polling import next_url, parse_every, retry_after, same_origin, without_user
from served import Place
from source_contract import Outside, SourceContract
from support import advance, make_app, until


class Api:
    """A server on a free port. answer: makes the next answer of a request; asked: what came."""

    def __init__(self) -> None:
        self.asked: list[web.Request] = []
        self.answer: Callable[[web.Request], web.StreamResponse] = lambda request: web.json_response([])
        self.held: asyncio.Event | None = None
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        if self.held is not None:
            await self.held.wait()
        return self.answer(request)

    async def start(self, port: int = 0) -> None:
        application = web.Application()
        application.router.add_route("*", "/{tail:.*}", self._serve)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    made = Api()
    await made.start()
    yield made
    await made.stop()


def app_of(folder: Path, *handlers: Callable[..., Any], clock: Clock | None = None, toml: str = "") -> App:
    return make_app(folder, *handlers, toml=toml, clock=clock, plugins=Plugins([eventrouter_plugin()]))


def state(app: App) -> str:
    return app.sources["webhook"].router.state


class Feed(Outside):
    """An API whose list grows. What is on it while nobody asks is there for the next who does."""

    source = "webhook"
    keeps = True

    def __init__(self, api: Api) -> None:
        self.api = api
        self.items: list[bytes] = []
        api.answer = lambda request: web.Response(body=b"[%s]" % b",".join(self.items), content_type="application/json")

    def plugins(self) -> Plugins:
        return Plugins([eventrouter_plugin()])

    def trigger(self) -> PollTrigger:
        return poll(f"{self.api.url}/feed", 0.05, items="$", id="$.n")

    async def put(self, app: App, n: int, body: bytes | None = None) -> bool:
        self.items.append(body or b'{"n": %d}' % n)
        return True


class TestPollIsASource(SourceContract):
    @pytest.fixture
    def outside(self, api: Api) -> Feed:
        return Feed(api)


def collecting(trigger: PollTrigger) -> tuple[list[Any], Callable[..., Any]]:
    got: list[Any] = []

    @on(trigger)
    async def handler(item: Any, event: Event) -> None:
        got.append(item)

    return got, handler


async def test_each_new_item_comes_once(tmp_path: Path, api: Api) -> None:
    got, handler = collecting(poll(f"{api.url}/orders", "5 minutes", items="$.results", id="$.id"))
    items = [{"id": 1}, {"id": 2}]
    api.answer = lambda request: web.json_response({"results": items})
    clock = ManualClock()
    async with app_of(tmp_path, handler, clock=clock) as app:
        await until(lambda: got == [{"id": 1}, {"id": 2}] and state(app) == "live")
        items[:] = [{"id": 2, "changed": True}, {"id": "1"}, {"id": 3}, {"id": 3}]
        clock.advance(299)
        await _turns()
        assert len(api.asked) == 1
        await advance(clock, 1, lambda: len(got) == 3)
    assert got[2] == {"id": 3}
    clock.advance(86_400 * 3)  # longer than the journal knows repeats
    async with app_of(tmp_path, handler, clock=clock):
        items.append({"id": 4})
        await until(lambda: len(got) == 4)
    assert got[3] == {"id": 4}
    assert len(api.asked) == 3


async def test_without_items_each_changed_answer_is_one(tmp_path: Path, api: Api) -> None:
    got, handler = collecting(poll(f"{api.url}/status", 10))
    answers = iter(["a", "a", "b", "a"])
    current = "a"

    def answer(request: web.Request) -> web.Response:
        nonlocal current
        current = next(answers)
        return web.json_response({"is": current})

    api.answer = answer
    clock = ManualClock()
    async with app_of(tmp_path, handler, clock=clock) as app:
        for count in range(1, 5):
            await until(lambda count=count: len(api.asked) == count and state(app) == "live" and len(clock._timers) > 0)  # type: ignore[misc]
            await until(lambda count=count: len(got) == [0, 1, 1, 2, 3][count])  # type: ignore[misc]
            if count < 4:
                await _asleep(app)
                clock.advance(10)
    assert got == [{"is": "a"}, {"is": "b"}, {"is": "a"}]


async def _asleep(app: App) -> None:
    """Until what a poll learnt is on disk and it waits for the next."""
    poller = next(iter(app.sources["webhook"]._pollers.values()))  # type: ignore[attr-defined]
    before = app.clock.time()
    await until(lambda: poller._state.at == before)
    await _turns()


async def _turns() -> None:
    """Time for what is due at once."""
    for _ in range(20):
        await asyncio.sleep(0)


def _asked_at(app: App) -> float:
    """When the last answer that is known was asked for."""
    poller = next(iter(app.sources["webhook"]._pollers.values()))  # type: ignore[attr-defined]
    return float(poller._state.at)


async def test_unchanged_is_asked_for_with_what_the_last_answer_said_even_after_a_restart(tmp_path: Path, api: Api) -> None:
    got, handler = collecting(poll(f"{api.url}/status", 10))
    modified = formatdate(1_767_225_600, usegmt=True)

    def answer(request: web.Request) -> web.Response:
        if request.headers.get("If-None-Match") == '"v1"' and request.headers.get("If-Modified-Since") == modified:
            return web.Response(status=304)
        return web.json_response({"n": len(api.asked)}, headers={"ETag": '"v1"', "Last-Modified": modified})

    api.answer = answer
    clock = ManualClock()
    async with app_of(tmp_path, handler, clock=clock) as app:
        await until(lambda: len(got) == 1)
        await _asleep(app)
        await advance(clock, 10, lambda: len(api.asked) == 2)
        await _asleep(app)
    clock.advance(10)
    async with app_of(tmp_path, handler, clock=clock) as app:
        await until(lambda: len(api.asked) == 3)
        await _asleep(app)
    assert got == [{"n": 1}]


async def test_a_restart_does_not_ask_before_it_is_time(tmp_path: Path, api: Api) -> None:
    _, handler = collecting(poll(f"{api.url}/status", 100))
    clock = ManualClock()
    async with app_of(tmp_path, handler, clock=clock) as app:
        await until(lambda: len(api.asked) == 1)
        await _asleep(app)
    clock.advance(60)
    async with app_of(tmp_path, handler, clock=clock) as app:
        await until(lambda: state(app) == "live")
        clock.advance(39)
        await _turns()
        await advance(clock, 1, lambda: len(api.asked) == 2)
        await _asleep(app)
        assert _asked_at(app) == clock.time()


async def test_a_cursor_is_followed_at_once_and_kept(tmp_path: Path, api: Api) -> None:
    got, handler = collecting(poll(f"{api.url}/log?limit=2&after={{cursor}}", 10, items="$.items", id="$.n", cursor="$.next"))
    entries = [{"n": n} for n in range(5)]

    def answer(request: web.Request) -> web.Response:
        start = int(request.query.get("after", "0 /").partition(" ")[0])
        assert ("after" in request.query) == (len(api.asked) > 1)
        end = min(start + 2, len(entries))
        return web.json_response({"items": entries[start:end], "next": f"{end} /"})

    api.answer = answer
    clock = ManualClock()
    async with app_of(tmp_path, handler, clock=clock) as app:
        await until(lambda: len(got) == 5)
        await until(lambda: len(api.asked) == 4)
        await _asleep(app)
    assert [request.query.get("after") for request in api.asked] == [None, "2 /", "4 /", "5 /"]
    entries.append({"n": 5})
    clock.advance(10)
    async with app_of(tmp_path, handler, clock=clock):
        await until(lambda: len(got) == 6)
    assert api.asked[4].query["after"] == "5 /"
    assert got == entries


async def test_a_null_cursor_keeps_the_last_one_and_a_tag_is_of_its_own_url(tmp_path: Path, api: Api) -> None:
    got, handler = collecting(poll(f"{api.url}/x?c={{cursor}}", 10, items="$.items", cursor="$.next"))
    pages = {"": {"items": [1], "next": "b"}, "b": {"items": [2], "next": None}}
    tags: list[str | None] = []

    def answer(request: web.Request) -> web.Response:
        tags.append(request.headers.get("If-None-Match"))
        page = request.query.get("c", "")
        return web.json_response(pages[page], headers={"ETag": f'"{page}"'})

    api.answer = answer
    clock = ManualClock()
    async with app_of(tmp_path, handler, clock=clock) as app:
        await until(lambda: len(got) == 2)
        await _asleep(app)
        pages["b"] = {"items": [2, 3], "next": None}
        await advance(clock, 10, lambda: len(got) == 3)
    assert [request.query.get("c") for request in api.asked] == [None, "b", "b"]
    assert tags == [None, None, '"b"']
    assert got == [1, 2, 3]


async def test_a_long_list_is_taken_whole(tmp_path: Path, api: Api) -> None:
    got, handler = collecting(poll(f"{api.url}/x", 10, items="$"))
    api.answer = lambda request: web.json_response(list(range(2500)))
    async with app_of(tmp_path, handler, clock=ManualClock()):
        await until(lambda: len(got) == 2500)
    assert sorted(got) == list(range(2500))


async def test_nothing_is_asked_while_the_journal_takes_nothing(tmp_path: Path, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    _, handler = collecting(poll(f"{api.url}/x", 10))
    clock = ManualClock()
    async with app_of(tmp_path, handler, clock=clock) as app:
        await until(lambda: len(api.asked) == 1)
        await _asleep(app)
        with monkeypatch.context() as patch:
            patch.setattr(app.journal, "fault", "the disk is full")
            clock.advance(10)
            await until(lambda: state(app) == f"poll {api.url}/x: the disk is full")
            assert len(api.asked) == 1
        await advance(clock, 1, lambda: len(api.asked) == 2 and state(app) == "live")


async def test_a_cursor_may_be_the_next_url_of_that_host_alone(tmp_path: Path, api: Api, caplog: pytest.LogCaptureFixture) -> None:
    got, handler = collecting(poll(f"{api.url}/items", 10, items="$.items", cursor="$.next"))
    pages = {
        "/items": {"items": [1], "next": "/items?page=2"},
        "/items?page=2": {"items": [2], "next": f"{api.url}/items?page=3"},
        "/items?page=3": {"items": [3], "next": f"http://localhost:{api.port}/items"},
    }
    api.answer = lambda request: web.json_response(pages[request.path_qs])
    async with app_of(tmp_path, handler, clock=ManualClock()) as app:
        await until(lambda: "another host" in state(app))
        await until(lambda: got == [1, 2, 3])
    assert len(api.asked) == 3


async def test_pages_in_a_row_are_bounded(tmp_path: Path, api: Api) -> None:
    got, handler = collecting(poll(f"{api.url}/x?c={{cursor}}", 10, items="$.items", cursor="$.next", name="endless"))
    api.answer = lambda request: web.json_response({"items": [len(api.asked)], "next": len(api.asked)})
    clock = ManualClock()
    async with app_of(tmp_path, handler, clock=clock, toml="[webhook.polls.endless]\npages = 3\n") as app:
        await until(lambda: state(app) == "live" and len(got) == 3)
        await _asleep(app)
        assert len(api.asked) == 3
        await advance(clock, 10, lambda: len(got) == 6)
    assert api.asked[3].query["c"] == "3"


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_is_waited_for(tmp_path: Path, api: Api, form: str) -> None:
    got, handler = collecting(poll(f"{api.url}/x", 10))
    clock = ManualClock()
    after = "120" if form == "seconds" else formatdate(clock.time() + 120, usegmt=True)
    api.answer = lambda request: web.Response(status=429, headers={"Retry-After": after})
    async with app_of(tmp_path, handler, clock=clock) as app:
        await until(lambda: "it answers 429" in state(app))
        assert app.supervisor is not None
        assert not app.supervisor.health().ready
        assert f"poll {api.url}/x: it answers 429" in app.supervisor.health().sources["webhook"]
        api.answer = lambda request: web.json_response(1)
        clock.advance(119)
        await _turns()
        await advance(clock, 1, lambda: got == [1] and state(app) == "live")
        assert _asked_at(app) == clock.time()


class Diary(ManualClock):
    """Keeps how long who waits was going to."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    async def sleep(self, delay: float) -> None:
        self.waits.append(delay)
        await super().sleep(delay)


async def test_failures_are_asked_again_more_and_more_seldom(tmp_path: Path, api: Api) -> None:
    got, handler = collecting(poll(f"{api.url}/x", 1))
    api.answer = lambda request: web.Response(status=503, headers={"Retry-After": "0"})
    clock = Diary()
    async with app_of(tmp_path, handler, clock=clock):
        for count in range(1, 12):
            await until(lambda count=count: len(clock.waits) == count)  # type: ignore[misc]
            await _turns()
            clock.advance(clock.waits[-1])
        api.answer = lambda request: web.json_response(1)
        await until(lambda: len(clock.waits) == 12)
        await _turns()
        clock.advance(400)
        await until(lambda: got == [1])
        await until(lambda: len(clock.waits) == 13)
    assert all(0.9 * min(2**n, 300) <= wait <= 1.1 * min(2**n, 300) for n, wait in enumerate(clock.waits[:11])), clock.waits
    assert clock.waits[12] == 1
    assert len({wait / min(2**n, 300) for n, wait in enumerate(clock.waits[:11])}) > 1, "there is jitter"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda: web.Response(text="<html>"), "its answer is no JSON"),
        (lambda: web.json_response({"results": 7}), "what it has as items is no list"),
        (lambda: web.json_response({"results": [], "next": {}}), "its cursor is neither text nor a number"),
        (lambda: web.json_response({"results": ["x" * 5000]}), "its answer is larger than 1000 bytes"),
        (
            lambda: web.Response(body=gzip.compress(b"[" + b" " * 50_000 + b"]"), headers={"Content-Encoding": "gzip"}),
            "its answer is larger than 1000 bytes",
        ),
        (lambda: web.Response(status=401), "it answers 401"),
        (lambda: web.Response(status=302, headers={"Location": "/again"}), "more than 5 redirects"),
        (lambda: web.Response(status=302, headers={"Location": "ftp://x/y"}), "no https url"),
    ],
)
async def test_what_is_wrong_is_named_and_goes_away(tmp_path: Path, api: Api, answer: Callable[[], web.Response], why: str) -> None:
    got, handler = collecting(poll(f"{api.url}/x", 10, items="$.results", cursor="$.next", name="x"))
    api.answer = lambda request: answer()
    clock = ManualClock()
    async with app_of(tmp_path, handler, clock=clock, toml="[webhook.polls.x]\nlimit = 1000\n") as app:
        await until(lambda: why in state(app))
        api.answer = lambda request: web.json_response({"results": [1]})
        await advance(clock, 2, lambda: state(app) == "live" and got == [1])


async def test_a_server_that_is_gone_or_silent_is_named_and_comes_back(tmp_path: Path, api: Api) -> None:
    got, handler = collecting(poll(f"{api.url}/x", 10, name="x"))
    await api.stop()
    clock = ManualClock()
    async with app_of(tmp_path, handler, clock=clock, toml="[webhook.polls.x]\ntimeout = 0.05\n") as app:
        await until(lambda: "Cannot connect" in state(app))
        api.held = asyncio.Event()
        await api.start(api.port)
        await advance(clock, 2, lambda: "no answer within 0.05 s" in state(app))
        api.held.set()
        await advance(clock, 3, lambda: state(app) == "live" and got == [[]])


async def test_secrets_are_sent_to_the_named_host_alone_and_never_told(
    tmp_path: Path, api: Api, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Api()
    await other.start()
    url = api.url.replace("://", "://ann:hunter2@")
    trigger = poll(f"{url}/x", 10, name="x", headers={"X-Plain": "1"})
    _, handler = collecting(trigger)
    api.answer = lambda request: (
        web.Response(status=307, headers={"Location": "/y"})
        if request.path == "/x"
        else web.Response(status=307, headers={"Location": f"{other.url}/z"})
    )
    other.answer = lambda request: web.Response(status=500)
    try:
        async with app_of(tmp_path, handler, toml='[webhook.polls.x.headers]\nX-Key = "sesame"\n', clock=ManualClock()) as app:
            await until(lambda: "it answers 500" in state(app))
            told = f"{trigger} {app.sources['webhook'].lines()} {state(app)} {caplog.text} {capsys.readouterr()}"
    finally:
        await other.stop()
    assert [request.path for request in api.asked] == ["/x", "/y"]
    for request in api.asked:
        assert (request.headers["Authorization"], request.headers["X-Key"]) == ("Basic YW5uOmh1bnRlcjI=", "sesame")
        assert request.headers["X-Plain"] == "1"
    assert not {"Authorization", "X-Key", "X-Plain"} & set(other.asked[0].headers)
    assert "hunter2" not in told
    assert "sesame" not in told


async def test_two_functions_of_one_url_ask_once(tmp_path: Path, api: Api) -> None:
    first, one = collecting(poll(f"{api.url}/x", "1 hour"))
    second, two = collecting(poll(f"{api.url}/x", "1 minute"))
    two.__name__ = "two"
    clock = ManualClock()
    async with app_of(tmp_path, one, two, clock=clock) as app:
        await until(lambda: first == second == [[]])
        assert len(api.asked) == 1
        await _asleep(app)
        await advance(clock, 60, lambda: len(api.asked) == 2)


async def test_polls_of_one_url_never_overlap(tmp_path: Path, api: Api) -> None:
    _, handler = collecting(poll(f"{api.url}/x", 1))
    api.held = asyncio.Event()
    clock = ManualClock()
    async with app_of(tmp_path, handler, clock=clock) as app:
        await until(lambda: len(api.asked) == 1)
        clock.advance(100)
        await _turns()
        assert len(api.asked) == 1
        api.held.set()
        await until(lambda: len(api.asked) == 2 and state(app) == "live")


async def test_an_unmodified_lambda_function_gets_an_event_as_of_eventbridge(tmp_path: Path, api: Api) -> None:
    got: list[Any] = []

    @on(poll(f"{api.url}/orders", items="$", id="$.id"))
    def handler(event, context):  # type: ignore[no-untyped-def]
        got.append(event)

    api.answer = lambda request: web.json_response([{"id": 7, "status": "paid"}])
    async with app_of(tmp_path, handler, clock=ManualClock()):
        await until(lambda: got)
    assert got == [
        {
            "version": "0",
            "id": f"{api.url}/orders 7",
            "detail-type": "Poll Item",
            "source": "poll.127.0.0.1",
            "account": "000000000000",
            "time": "2026-01-01T00:00:00Z",
            "region": "local",
            "resources": [f"{api.url}/orders"],
            "detail": {"id": 7, "status": "paid"},
        }
    ]


async def test_what_was_delivered_but_not_yet_remembered_runs_once(tmp_path: Path, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    got, handler = collecting(poll(f"{api.url}/x", 10, items="$", id="$.id"))
    api.answer = lambda request: web.json_response([{"id": 1}])
    clock = ManualClock()
    async with app_of(tmp_path, handler, clock=clock) as app:

        async def fails(key: str, value: bytes | None) -> None:
            raise OSError("it dies here")

        monkeypatch.setattr(app.sources["webhook"].router, "put", fails)
        await until(lambda: "it dies here" in state(app) or "unhandled" in state(app))
        await until(lambda: len(got) == 1)
    api.answer = lambda request: web.json_response([{"id": 1}, {"id": 2}])
    async with app_of(tmp_path, handler, clock=clock):
        await until(lambda: len(got) == 2)
    assert got == [{"id": 1}, {"id": 2}]


def test_from_a_config_file(tmp_path: Path) -> None:
    @on()
    async def handler(item: dict[str, Any]) -> None: ...

    toml = '[functions.handler]\non = [{ poll = "https://x.example/x?c={cursor}", every = "90s", cursor = "$.next", items = "$.i" }]\n'
    app = app_of(tmp_path, handler, toml=toml)
    assert str(app.functions["handler"].triggers[0]) == "poll https://x.example/x?c={cursor} every 90 s"


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: poll("ftp://x/y"), "http://"),
        (lambda: poll("https://u:hunter2@x y/"), "without spaces"),
        (lambda: poll("https://u:hunter2@x/", "soon"), r"poll\('https://x/'\): every: 'soon' is no duration"),
        (lambda: poll("https://x/", 0), "more than 0 seconds"),
        (lambda: poll("https://x/?c={cursor}"), r'cursor="\$.next"'),
        (lambda: poll("https://{cursor}.x/", cursor="$.c"), "host's name"),
        (lambda: poll("https://x/", id="$.id"), r'items="\$.results"'),
        (lambda: poll("https://x/", items="results"), "JSON path 'results'"),
    ],
)
def test_wrong_polls_are_named_at_load(make: Callable[[], Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault) as error:
        make()
    assert "hunter2" not in str(error.value)


def test_wrong_configurations_are_named_at_load(tmp_path: Path) -> None:
    _, one = collecting(poll("https://x/", name="x"))
    _, two = collecting(poll("https://x/", items="$", name="x"))
    two.__name__ = "two"
    for handlers, toml, fault in (
        ((one,), "[webhook.polls.y]\n", r"\[webhook.polls.y\]: no poll has name='y'; known: x"),
        ((one,), "[webhook.polls.x]\nheader = 1\n", r"\[webhook.polls.x\] unknown key 'header'; did you mean 'headers'"),
        ((one,), "[webhook.polls.x]\ntimeout = 0\n", r"\[webhook.polls.x\] timeout: expected float > 0"),
        ((one, two), "", "two: https://x/ is polled in two ways"),
    ):
        with pytest.raises(ConfigError, match=fault):
            app_of(tmp_path, *handlers, toml=toml)


def test_rules() -> None:
    assert [parse_every(text, "x") for text in ("5 minutes", "1 hour", "90s", 2, "1 day", "0.5 seconds")] == [300, 3600, 90, 2, 86400, 0.5]
    assert without_user("https://a:b@x:8/p?q=1") == "https://x:8/p?q=1"
    assert next_url("https://x/{cursor}/y?a=1&c={cursor}&b=2", None) == "https://x//y?a=1&b=2"
    assert next_url("https://x/?c={cursor}", "a&b=/ü") == "https://x/?c=a%26b%3D%2F%C3%BC"
    assert same_origin("https://x/a", "https://x:443/b")
    assert not same_origin("https://x/a", "http://x/a")
    assert not same_origin("https://x/a", "https://y/a")
    now = 1_767_225_600
    assert retry_after("7", now) == 7
    assert retry_after(formatdate(now + 90, usegmt=True), now) == 90
    assert retry_after(formatdate(now - 90, usegmt=True), now) == 0
    assert retry_after("soon", now) is None
    assert retry_after(None, now) is None
    assert retry_after("999999999", now) == 86_400
    assert json.dumps(retry_after("-1", now)) == "null"


@pytest.mark.asyncio(loop_factories=["asyncio"])  # the test's own; what dies serves on uvloop
@pytest.mark.parametrize("point", ["receipt.before", "ack.before", "ack.after"])
async def test_a_router_that_dies_while_it_polls_runs_each_item_once(
    tmp_path: Path, api: Api, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    (tmp_path / "app.py").write_text(
        "import asyncio, os\nfrom pathlib import Path\nfrom eventrouter import on\nfrom eventrouter_webhook import poll\n\n"
        f'@on(poll("{api.url}/x", 0.2, items="$", id="$.id"), timeout=60)\nasync def note(item: dict) -> None:\n'
        '    if "EVENTROUTER_CRASH_AT" in os.environ:\n        await asyncio.sleep(60)\n'
        '    with Path("got.txt").open("a") as file:\n        file.write(str(item["id"]) + "\\n")\n'
    )
    (tmp_path / "eventrouter.toml").write_text("[http]\nport = 0\n")
    items = [{"id": 1}, {"id": 2}]
    api.answer = lambda request: web.json_response(items)
    with Place(tmp_path) as place:
        monkeypatch.setenv("EVENTROUTER_CRASH_AT", point)
        process = place.start()
        await until(lambda: process.poll() is not None)
        assert process.returncode == 86
        monkeypatch.delenv("EVENTROUTER_CRASH_AT")
        place.start()
        items.append({"id": 3})
        got = tmp_path / "got.txt"
        await until(lambda: got.exists() and len(got.read_text().split()) >= 3)
        asked = len(api.asked)
        await until(lambda: len(api.asked) > asked + 2)
    assert sorted(got.read_text().split()) == ["1", "2", "3"]
