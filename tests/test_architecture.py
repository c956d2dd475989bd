"""The house's rules, read from the code itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "eventrouter"
PLUGINS = ROOT / "plugins"

# A module imports only from lower floors, or from its own room.
FLOORS = {
    "errors": 0, "clock": 0,
    "patterns": 0.5,
    "model": 1, "crashpoints": 1, "secrets": 1,
    "retry": 2, "limits": 2, "routing": 2, "hookspecs": 2, "journal": 2, "wildcards": 2, "paths": 2, "batches": 2,
    "destinations": 2, "notices": 2, "logs": 2, "network": 2,
    "binding": 3, "idempotency": 3, "lineage": 3, "audit": 3, "permissions": 3.5,
    "functions": 4, "plugins": 4, "config": 4, "invoking": 4,
    "sources": 5, "lanes": 5, "runtimes": 5, "contents": 5.5, "workers": 5.5,
    "usage": 5, "attempts": 6, "intake": 6, "accounts": 6,
    "settlement": 7, "replay": 7, "byhand": 7.5, "throttling": 7.5,
    "engine": 8,
    "access": 8.5,
    "app": 9,
    "operations": 9.5,
    "control": 10,
    "": 11,
    "cli": 12,
    "__main__": 13,
}  # fmt: skip
HEAVY = {"aiohttp", "jwt", "paho", "watchdog", "apsw", "uvloop", "cronsim", "psycopg"}


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imports(path: Path, *, top_level: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(dotted: str) -> str:
    """`eventrouter.journal.sqlite.X` -> `journal`; a name of the package itself -> ``."""
    parts = dotted.split(".")[1:]
    return parts[0] if parts and parts[0] in FLOORS else ""


def own_room(path: Path) -> str:
    parts = path.relative_to(CORE).with_suffix("").parts
    return "" if parts[0] == "__init__" else parts[0]


@pytest.mark.parametrize("path", modules(CORE), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_lower_floors(path: Path) -> None:
    here = own_room(path)
    for name in imports(path):
        if name.split(".")[0] != "eventrouter":
            assert not name.startswith("eventrouter_"), f"the core imports a plugin: {name}"
            continue
        there = room(name)
        assert there == here or FLOORS[there] < FLOORS[here], f"{here} imports {there}, which is not on a lower floor"


def test_there_are_no_import_cycles() -> None:
    graph = {
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__"): {
            name for name in imports(path, top_level=True) if name.startswith("eventrouter")
        }
        for path in modules(CORE)
    }
    edges = {
        module: {
            target
            for name in names
            for target in (name, name.rpartition(".")[0])
            if target in graph and target not in (module, "eventrouter")
        }
        for module, names in graph.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"import cycle: {' -> '.join((*trail, module))}"
        if module not in done:
            for target in edges[module]:
                visit(target, (*trail, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def test_the_core_names_no_plugin() -> None:
    names = [folder.name for folder in PLUGINS.iterdir() if folder.is_dir()]
    assert names
    for path in modules(CORE):
        text = path.read_text()
        for name in names:
            assert name not in text, f"{path} names {name}"


@pytest.mark.parametrize("path", modules(PLUGINS), ids=lambda p: str(p.relative_to(PLUGINS)))
def test_plugins_use_only_what_a_third_party_could(path: Path) -> None:
    own = path.relative_to(PLUGINS).parts[0]
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "eventrouter":
            public = "." not in rest or rest.startswith("errors.")
            assert public, f"{path} imports {name}: only eventrouter's public names"
        assert not top.startswith("eventrouter_") or top == own, f"{path} imports another plugin: {name}"


@pytest.mark.parametrize("path", modules(PLUGINS), ids=lambda p: str(p.relative_to(PLUGINS)))
def test_plugins_import_heavy_libraries_only_with_their_source(path: Path) -> None:
    if path.name == "__init__.py":
        assert not {name.split(".")[0] for name in imports(path, top_level=True)} & HEAVY


def test_only_the_clock_reads_the_wall_clock() -> None:
    for path in [*modules(CORE), *modules(PLUGINS)]:
        if path.name == "clock.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                call = f"{node.value.id}.{node.attr}"
                assert call not in {"time.time", "time.monotonic", "time.perf_counter", "datetime.now", "datetime.utcnow"}, (
                    f"{path}: {call}"
                )


def test_files_stay_readable() -> None:
    for path in [*modules(CORE), *modules(PLUGINS)]:
        assert len(path.read_text().splitlines()) <= 600, f"{path} has outgrown its room"
