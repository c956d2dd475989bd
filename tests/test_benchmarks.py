"""Each benchmark runs, in a tiny size: that it works, not how fast. And the harness: rounds, JSON, the report."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

import benchmarks.__main__
from benchmarks import report, stages
from benchmarks.__main__ import NAMES
from benchmarks.harness import Result, compare, once
from benchmarks.measure import Measured, Watch, fresh
from benchmarks.peers import PEERS, environments

ROOT = Path(__file__).parent.parent
TINY = {
    "dispatch": {"COUNT": 256},
    "durable": {"COUNT": 256, "LATENCIES": 3},
    "http": {"COUNT": 64, "LATENCIES": 3},
    "mqtt": {"COUNT": 50},
    "process": {"COUNT": 320, "COLD": 2},
    "calls": {"COUNT": 128},
    "start": {"SETTLE": 0},
    "backlog": {"COUNT": 128, "FEW": 128, "MANY": 256, "BESIDE_RATE": 100, "BESIDE_SECONDS": 1},
    "patterns": {"EVENTS": 2, "SIZES": (10,)},
    "routes": {"EVENTS": 16, "MANY": 20},
    "fanout": {"COUNT": 640},
}


def results(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[Result]:
    monkeypatch.chdir(folder)  # where they put their files
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    module = importlib.import_module(f"benchmarks.{name}")
    for constant, value in TINY[name].items():
        monkeypatch.setattr(module, constant, value)
    return list(module.run(1))


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_benchmark_measures_both_sides(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for result in results(name, monkeypatch, tmp_path):
        assert result.name.startswith(name) or name in {"start", "backlog"}
        assert result.ours > 0
        assert result.limit > 0
        assert result.ratio == pytest.approx(result.ours / result.limit)
        assert not result.missing
        assert result.line().startswith(result.name)
        for side in result.sides.values():
            if name in {"dispatch", "durable", "http", "mqtt"} and result.name != "durable-latency":
                assert side.cpu is not None
                assert side.rss is not None
                assert side.rss > 1  # MB
            if name == "http" or result.name == "durable-latency":
                assert side.latency is not None
                assert 0 < side.latency[0] <= side.latency[1]
    assert list(tmp_path.iterdir()) == []  # they clean up behind them


def test_every_benchmark_is_tried_here() -> None:
    assert set(NAMES) >= set(TINY)


def sides(order: list[str], **values: list[float]) -> dict[str, Callable[[], Measured]]:
    def measure(name: str, left: Iterator[float]) -> Callable[[], Measured]:
        def measured() -> Measured:
            order.append(name)
            return Measured(next(left))

        return measured

    return {name: measure(name, iter(numbers)) for name, numbers in values.items()}


def test_rounds_alternate_and_ratios_are_of_each_round() -> None:
    order: list[str] = []
    made = sides(order, ours=[99, 10, 20, 40], limit=[99, 20, 20, 20], peer=[5, 5, 8])
    result = compare("it", "events/s", made["ours"], made["limit"], rounds=3, against="that", peers={"peer": made["peer"]})
    assert order == ["limit", "ours", "ours", "limit", "peer", "peer", "limit", "ours", "ours", "limit", "peer"]
    assert (result.ours, result.limit, result.ratio, result.spread) == (20, 20, 1, (0.5, 2))
    assert result.peers == {"peer": 5}
    assert result.sides["peer"].ratio == (4, 2, 5)


def test_a_peer_that_fails_is_told_and_the_others_stand() -> None:
    def broken() -> float:
        raise RuntimeError("redis-server is not installed: apt-get install redis-server")

    result = compare(
        "it",
        "events/s",
        lambda: 2,
        lambda: 1,
        rounds=2,
        against="that",
        peers={"broken": broken, "good": lambda: 1},
        missing={"none": "no"},
    )
    assert result.peers == {"good": 1}
    assert result.missing == {"none": "no", "broken": "redis-server is not installed: apt-get install redis-server"}
    assert "MISSING: redis-server is not installed" in result.line()
    with pytest.raises(RuntimeError, match="redis-server"):
        compare("it", "events/s", broken, lambda: 1, rounds=1, against="that")


def test_a_watch_counts_what_children_do() -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    with Watch() as watch:
        subprocess.run([sys.executable, "-c", burn], check=True)
    assert watch.cpu > 0.1  # the kernel counts in hundredths
    assert watch.seconds > 0


def test_what_fails_in_a_fresh_process_says_why() -> None:
    with pytest.raises(RuntimeError, match="no_such_side"):
        fresh("benchmarks.durable:no_such_side")()


def test_a_peer_that_cannot_be_installed_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "no network")

    monkeypatch.setattr("benchmarks.peers.subprocess.run", refuse)
    peers = environments(tmp_path)
    assert peers.found == {}
    assert peers.missing == dict.fromkeys(PEERS, "can't be installed: no network")


def test_every_peer_has_its_module() -> None:
    for peer in PEERS.values():
        for keywords in peer.kinds.values():
            source = (ROOT / "benchmarks" / "peers" / f"{keywords['module']}.py").read_text()
            assert "COMMAND = " in source
            assert "def send(count: int)" in source


def test_json_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for constant, value in TINY["patterns"].items():
        monkeypatch.setattr(f"benchmarks.patterns.{constant}", value)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "patterns", "--rounds", "2", "--json"])
    benchmarks.__main__.main()
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert {"name", "ours", "limit", "ratio", "peers", "rounds", "spread"} <= set(told)
    assert told["machine"]
    assert told["rounds"] == len(told["spread"]) == 2


def test_the_report_fills_the_page_and_draws_the_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "performance.md"
    places = "\n".join(f"<!-- {name}: generated -->\nold\n<!-- {name}: end -->" for name in ("figures", "peers", "machine"))
    page.write_text(f"before\n{places}\nafter\n")
    peers = {"huey": lambda: 5}
    made = compare(
        "durable",
        "events/s",
        lambda: 50,
        lambda: 100,
        rounds=2,
        against="<bare>",
        peers=peers,
        missing={"arq": "no"},
        versions={"huey": "3"},
    )
    lines = [msgspec.json.encode(result).decode() for result in (made, once("memory", "MB", 50, 40, against="idle"))]
    (tmp_path / "results.json").write_text("\n".join(lines))
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "results.json"), "--docs", str(tmp_path)])
    for _ in range(2):  # again, over what it made
        report.main()
        text = page.read_text()
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        assert "old" not in text
        assert text.count("| `durable` | <bare> |") == 1
        assert "**10.0**" in text or "**10**" in text
        assert "missing: no" in text
        assert "+10 MB" in text
        assert made.machine in text
        assert "huey 3" in text
    chart = ElementTree.parse(tmp_path / "performance.svg")
    said = " ".join(element.text or "" for element in chart.iter())
    assert "durable" in said
    assert "huey" in said
    assert "memory" not in said  # no bar for what is better when it is less


def test_a_page_without_places_is_refused(tmp_path: Path) -> None:
    (tmp_path / "performance.md").write_text("nothing")
    with pytest.raises(SystemExit, match="no place for figures"):
        report.write([once("it", "MB", 1, 1, against="that")], tmp_path)


def test_this_repository_s_page_has_the_places() -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    for name in ("figures", "peers", "machine"):
        assert f"<!-- {name}: generated -->" in text
        assert f"<!-- {name}: end -->" in text


def test_the_stages_of_an_event_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "BATCHES", 20)
    (table,) = stages.run(5)
    assert [line.split("|")[1].strip() for line in table.line().splitlines()[2:]] == [*(name for name, _ in stages.STAGES), "all"]
    assert table.memory["journal"] == 0
    assert table.disk["journal"] > 0
    assert msgspec.json.decode(msgspec.json.encode(table), type=stages.Table) == table
