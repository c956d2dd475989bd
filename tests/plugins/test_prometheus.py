"""`/metrics`, as Prometheus reads it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

import eventrouter_http
import eventrouter_prometheus
from eventrouter import App, on
from eventrouter.errors import ConfigError
from eventrouter.plugins import Plugins
from http_support import Client
from support import LOCAL, local, make_app, put, until

TOKEN = "correct horse battery staple"


@on()
async def idle() -> None: ...


def app_of(folder: Path, *handlers: Callable[..., Any], toml: str = "") -> App:
    plugins = Plugins([LOCAL, eventrouter_http.eventrouter_plugin(), eventrouter_prometheus.eventrouter_plugin()])
    return make_app(folder, *handlers, toml=toml or "[http]\nport = 0\n", plugins=plugins)


@pytest.mark.parametrize(
    ("accept", "parse"), [("", plain), ("application/openmetrics-text; version=1.0.0", openmetrics)], ids=["text", "OpenMetrics"]
)
async def test_what_functions_and_sources_come_to(tmp_path: Path, accept: str, parse: Callable[[str], Any]) -> None:
    gate = asyncio.Event()

    @on(local("a"), concurrency=1, tags={"team": "plant", "cost-center": "7"})
    async def slow(number: int) -> None:
        await gate.wait()

    @on(local("b"), retries=0, tags={"Team": "of another case"})
    async def fails(number: int) -> None:
        raise ValueError(number)

    toml = '[http]\nport = 0\n[prometheus]\nlabels = ["team", "cost-center"]\n'
    async with app_of(tmp_path, slow, fails, toml=toml) as app, ClientSession() as session:
        for number in range(3):
            await put(app, "a", number)
        await put(app, "b", 1)
        await until(lambda: app.engine.lanes["fails"].dead == 1 and app.engine.lanes["slow"].active == 1)

        async def told() -> dict[tuple[str, ...], float]:
            answer = await Client(session, app)("GET /metrics", headers={"Accept": accept})
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith(accept.partition(";")[0] or "text/plain")
            found: dict[tuple[str, ...], float] = {}
            for family in parse(answer.body.decode()):
                assert family.documentation
                for sample in family.samples:
                    labels = sample.labels
                    name = labels.pop("function", labels.pop("source", ""))
                    if name in ("slow", "fails"):
                        tags = labels.pop("tag_team"), labels.pop("tag_cost_center")
                        assert tags == (("plant", "7") if name == "slow" else ("", ""))
                    found[sample.name.removeprefix("eventrouter_"), name, *labels.values()] = sample.value
            return found

        before = await told()
        assert before["invocations_accepted_total", "slow"] == 3
        assert before["running", "slow"] == 1
        assert before["waiting", "slow"] == 2
        assert before["attempts_total", "fails", "failed"] == 1
        assert before["dead_letters_total", "fails"] == 1
        assert before["source_live", "local"] == before["source_live", "http"] == before["accepting", ""] == 1
        gate.set()
        await until(lambda: app.engine.lanes["slow"].succeeded == 3)
        app.sources["local"].router.lost("gone")
        after = await told()
        assert after["attempts_total", "slow", "succeeded"] == 3
        assert (after["running", "slow"], after["waiting", "slow"], after["source_live", "local"]) == (0, 0, 0)
        assert before.keys() == after.keys()


async def test_who_is_told(tmp_path: Path) -> None:
    hashed = f'admin_token_hash = "{hashlib.sha256(TOKEN.encode()).hexdigest()}"'
    for host, more, token, status in (
        ("127.0.0.1", "", "", 200),
        ("0.0.0.0", "", "", 403),
        ("127.0.0.1", hashed, "", 401),
        ("127.0.0.1", hashed, "wrong", 401),
        ("0.0.0.0", hashed, TOKEN, 200),
    ):
        toml = f'[http]\nport = 0\nhost = "{host}"\n{more}\n'
        async with app_of(tmp_path, idle, toml=toml) as app, ClientSession() as session:
            url = app.sources["http"].router.url.replace("0.0.0.0", "127.0.0.1") + "/metrics"
            async with session.get(url, headers={"Authorization": f"Bearer {token}"} if token else {}) as answer:
                assert answer.status == status, (host, more, token)


async def test_it_can_be_elsewhere_or_nowhere(tmp_path: Path) -> None:
    for path, there in (("/own/figures", "/own/figures"), ("", "")):
        toml = f'[http]\nport = 0\n[prometheus]\npath = "{path}"\n'
        async with app_of(tmp_path, idle, toml=toml) as app, ClientSession() as session:
            ask = Client(session, app)
            assert (await ask("GET /metrics")).status == 404
            if there:
                assert (await ask(f"GET {there}")).status == 200


@pytest.mark.parametrize(
    ("toml", "fault"),
    [
        ('labels = ["a-b", "a_b"]', r"\[prometheus\] labels: 'a-b' and 'a_b' would both be the label tag_a_b"),
        ('labels = ["a", "a"]', "'a' and 'a' would both be"),
        ('labels = "team"', "labels"),
        ('path = "metrics"', 'write a path such as "/metrics"'),
        ('path = "/m/{x}"', 'write a path such as "/metrics"'),
    ],
)
def test_what_is_no_configuration(tmp_path: Path, toml: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        app_of(tmp_path, idle, toml=f"[prometheus]\n{toml}\n")
