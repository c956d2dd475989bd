"""`python -m benchmarks.report RESULTS [--docs docs]`: from the lines of `python -m benchmarks --json`, the tables and the chart of docs/.

In docs/performance.md what stands between `<!-- NAME: generated -->` and `<!-- NAME: end -->` is replaced, for `figures`, `peers` and
`machine`; the chart is docs/performance.svg.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from html import escape
from pathlib import Path

import msgspec

from benchmarks.harness import Result, Side, figure

COSTS = {"s", "ms", "MB", "µs/event"}  # where less is better
WIDTH, LEFT, RIGHT, ROW = 820, 250, 150, 26  # pixels


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    given = parser.parse_args()
    results = [msgspec.json.decode(line, type=Result) for line in given.results.read_text().splitlines() if line.startswith("{")]
    write(list({result.name: result for result in results}.values()), given.docs)  # of a row that was repeated, the last


def write(results: Sequence[Result], docs: Path) -> None:
    page = docs / "performance.md"
    text = page.read_text()
    for name, made in (("figures", figures(results)), ("peers", peers(results)), ("machine", machines(results))):
        text = replace(text, name, made)
    page.write_text(text)
    (docs / "performance.svg").write_text(chart(results))


def replace(text: str, name: str, made: str) -> str:
    """The page with what is made between the marks of that name."""
    begin, end = f"<!-- {name}: generated -->", f"<!-- {name}: end -->"
    if begin not in text or end not in text:
        raise SystemExit(f"performance.md has no place for {name}: {begin} ... {end}")
    return text.partition(begin)[0] + f"{begin}\n{made}\n{end}" + text.partition(end)[2]


def figures(results: Sequence[Result]) -> str:
    """One row a benchmark."""
    rows = [
        "| benchmark | against | ours | limit | ratio (spread) | CPU s per 100,000: ours, limit | peak MB | p50, p99 ms: ours | limit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        ours, limit = result.sides["ours"], result.sides["limit"]
        more = f", {result.ours - result.limit:+.0f} MB" if result.unit == "MB" else ""
        cells = [
            f"`{result.name}`", result.against, f"{figure(result.ours)} {result.unit}", figure(result.limit),
            f"**{figure(result.ratio)}** ({figure(result.spread[0])}–{figure(result.spread[1])}{more})",
            _both(ours.cpu, limit.cpu), _both(ours.rss, limit.rss), _both(*(ours.latency or ())), _both(*(limit.latency or ())),
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def peers(results: Sequence[Result]) -> str:
    """One row a peer."""
    rows = ["| benchmark | side | events/s (least–most) | ours / it (spread) | CPU s per 100,000 | peak MB |", "|---|---|---|---|---|---|"]
    for result in results:
        names = [name for name in result.sides if name not in {"ours", "limit"}]
        for name in ["ours", *sorted(names, key=lambda name: -result.sides[name].median)] if names else []:
            side = result.sides[name]
            ratio = "" if side.ratio is None else "**{}** ({}–{})".format(*map(figure, side.ratio))
            rows.append(
                f"| `{result.name}` | {name} | {figure(side.median)} ({figure(side.least)}–{figure(side.most)}) | {ratio} "
                f"| {figure(side.cpu)} | {figure(side.rss)} |"
            )
        for name, why in result.missing.items():
            rows.append(f"| `{result.name}` | {name} | missing: {escape(' '.join(why.split())[:200])} | | | |")
    return "\n".join(rows)


def machines(results: Sequence[Result]) -> str:
    lines = {f"Measured on {result.machine}; {result.rounds} rounds of each." for result in results if result.rounds > 1}
    others = {f"{package} {version}" for result in results for package, version in result.versions.items()}
    return "\n".join(sorted(lines)) + (f"\nPeers: {', '.join(sorted(others))}." if others else "")


def _both(*values: float | None) -> str:
    return ", ".join(figure(value) for value in values) if values and None not in values else ""


def chart(results: Sequence[Result]) -> str:
    """Panels of bars: how near ours is to the limit; and, of what has peers, events a second beside them."""
    near = [result for result in results if result.unit not in COSTS]
    bars = [_heading(0, "Of the limit's speed (1 = as fast; the line: least to most of the rounds)")]
    scale = max([1.0, *(result.spread[1] for result in near)]) if near else 1.0
    y = ROW + 10
    unit = (WIDTH - LEFT - RIGHT) / scale
    bars.append(f'<line x1="{LEFT + unit:.1f}" y1="{ROW}" x2="{LEFT + unit:.1f}" y2="{y + ROW * len(near)}" class="one"/>')
    for result in near:
        bars.append(_bar(y, result.name, result.ratio * unit, "ours", figure(result.ratio), [edge * unit for edge in result.spread]))
        y += ROW
    for result in results:
        sides = {name: side for name, side in result.sides.items() if name not in {"ours", "limit"}}
        if not sides:
            continue
        shown: list[tuple[str, Side]] = sorted({"eventrouter": result.sides["ours"], **sides}.items(), key=lambda each: -each[1].median)
        y += ROW
        bars.append(_heading(y - 10, f"{result.name}: {result.unit}, beside peers"))
        y += ROW
        unit = (WIDTH - LEFT - RIGHT) / max(side.most for _, side in shown)
        for name, side in shown:
            kind = "ours" if name == "eventrouter" else "peer"
            bars.append(_bar(y, name, side.median * unit, kind, figure(side.median), [side.least * unit, side.most * unit]))
            y += ROW
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 10}" width="{WIDTH}" height="{y + 10}" role="img">
<title>eventrouter beside the limit and its peers</title>
<style>
text {{ font: 13px system-ui, sans-serif; fill: #24292f; }} .heading {{ font-weight: 600; }} .paper {{ fill: #ffffff; }}
.value {{ stroke: #ffffff; stroke-width: 4; paint-order: stroke; }}
.ours {{ fill: #1f6feb; }} .peer {{ fill: #8c959f; }} .spread {{ stroke: #24292f; stroke-width: 1.5; }}
.one {{ stroke: #cf222e; stroke-dasharray: 4 3; }}
@media (prefers-color-scheme: dark) {{
text {{ fill: #e6edf3; }} .paper {{ fill: #0d1117; }} .value {{ stroke: #0d1117; }}
.ours {{ fill: #4493f8; }} .peer {{ fill: #656d76; }} .spread {{ stroke: #e6edf3; }}
.one {{ stroke: #ff7b72; }} }}
</style>
<rect class="paper" width="100%" height="100%"/>
{chr(10).join(bars)}
</svg>
"""


def _heading(y: float, text: str) -> str:
    return f'<text class="heading" x="10" y="{y + 20}">{escape(text)}</text>'


def _bar(y: float, name: str, length: float, kind: str, value: str, spread: Sequence[float]) -> str:
    middle, end = y + ROW / 2 - 3, LEFT + max(length, *spread) + 8
    return (
        f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>'
        f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{max(length, 1):.1f}" height="{ROW - 6}"/>'
        f'<line class="spread" x1="{LEFT + spread[0]:.1f}" y1="{middle}" x2="{LEFT + spread[1]:.1f}" y2="{middle}"/>'
        f'<text class="value" x="{end:.1f}" y="{y + 15}">{value}</text>'
    )


if __name__ == "__main__":
    main()
