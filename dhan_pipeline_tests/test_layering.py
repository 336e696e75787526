"""Arrows point down only: which room may import from which, read from the source itself."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import dhan_pipeline

PACKAGE = Path(dhan_pipeline.__file__).parent

#: The rooms from the top of the house to its foundation. A room imports from itself and from what follows.
ROOMS = (
    {"sync_dhan_instruments"},
    {"cli"},
    {"demo"},
    {"local"},
    {"definitions", "ingest_definitions", "pipeline_definitions"},
    {"orchestration"},
    {"diagnosis"},
    {"page"},
    {"ingest"},
    {"alerts"},
    {"quality"},
    {"research"},
    {"transport"},
    {"store"},
    {"journal"},
    {"feeds"},
    {
        "amounts",
        "enrich",
        "candles",
        "chains",
        "instruments",
        "symbols",
        "ticks",
        "sessions",
        "special_days",
        "holidays",
        "subscriptions",
        "settings",
        "sources",
        "threads",
        "times",
        "clock",
        "errors",
        "gaps",
        "windows",
    },
)
LEVEL = {room: level for level, rooms in enumerate(reversed(ROOMS)) for room in rooms}

MAY_IMPORT_DAGSTER = {"orchestration", "definitions", "ingest_definitions", "pipeline_definitions", "local", "demo"}

#: Bytes in, batches out.
SANS_IO = ("wire", "framing", "packets", "depth", "decode", "explain", "requests")
FEEDS = ("dhan", "kite")
IO = {"asyncio", "socket", "websockets", "httpx", "uvloop", "threading", "subprocess"}

MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(path: Path) -> Iterator[str]:
    """Full name of everything that the file imports, wherever it does so, `TYPE_CHECKING` included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else str(node.module)


def room(module: str) -> str:
    return module.split(".")[1]


def outside(module: str) -> set[str]:
    """Top-level packages that a module imports."""
    return {name.partition(".")[0] for name in imports(MODULES[module])}


def test_every_module_has_a_room() -> None:
    assert {room(module) for module in MODULES if module != "dhan_pipeline"} <= LEVEL.keys()


@pytest.mark.parametrize("module", [module for module in MODULES if module != "dhan_pipeline"])
def test_nothing_imports_from_a_room_above_it(module: str) -> None:
    upward = [
        name
        for name in imports(MODULES[module])
        if name.startswith("dhan_pipeline.") and LEVEL[room(name)] > LEVEL[room(module)]
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: {name for name in imports(path) if name in MODULES} for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()


def test_only_the_orchestration_its_door_and_the_demo_import_dagster() -> None:
    with_dagster = {room(module) for module in MODULES if any("dagster" in name for name in outside(module))}
    assert with_dagster <= MAY_IMPORT_DAGSTER


def test_feeds_know_no_database() -> None:
    feeds = [module for module in MODULES if module.startswith("dhan_pipeline.feeds")]
    assert not [module for module in feeds if outside(module) & {"psycopg2", "sqlalchemy"}]


@pytest.mark.parametrize("feed", FEEDS)
def test_wire_formats_do_no_input_and_output(feed: str) -> None:
    modules = {f"dhan_pipeline.feeds.{feed}.{name}" for name in SANS_IO} & MODULES.keys()
    assert len(modules) >= len(SANS_IO) - 1  # Kite has no feed of depth alone
    assert not {module for module in modules if outside(module) & IO}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("cli", {"dagster", "pandas", "psycopg2", "sqlalchemy", "pyarrow", "numpy"}),
        ("pipeline_definitions", {"pandas"}),
        ("ingest.run", {"dagster", "pandas", "dhan_pipeline.research"}),
        ("errors", {"numpy", "pyarrow", "psycopg2", "dhan_pipeline.research"}),
        ("feeds.dhan.explain", {"dagster", "pandas", "psycopg2"}),
    ],
)
def test_importing_a_door_does_not_load_what_it_has_no_use_for(module: str, absent: set[str]) -> None:
    said = subprocess.run(
        [sys.executable, "-c", f"import sys, dhan_pipeline.{module}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not absent & set(said.stdout.split())
