"""The layering rules of the architecture (docs/architecture.md), read from the sources themselves.

1. A `decide.py`, and every module whose docstring says "Pure.", imports nothing that reads a clock or the
outside world. 2. `host/` imports nothing above it, and nobody else names files under /proc or /sys. 3.
`crates/core` and `crates/tls` know no Python; only `crates/py` does, and it only converts.

Each checker is shown a bad source, so that a checker that sees nothing is found out.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src/sustain"

_PURE = """
__future__ abc ast base64 bisect collections dataclasses decimal enum fractions functools hashlib heapq hmac
ipaddress itertools json math operator re statistics string struct types typing urllib.parse zlib
msgspec numpy sustain.errors sustain.units sustain._native.UNKNOWN
"""
PURE_IMPORTS = set(_PURE.split())
PURE_CALLS_REFUSED = {"open", "input", "print", "exec", "eval", "__import__"}
BELOW_HOST = {"sustain.errors", "sustain.units", "sustain.host"}


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module) of every import that runs; those for type checkers only do not run."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped.update(inner for part in node.body for inner in ast.walk(part))
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            module = node.module or ""
            if module.split(".")[0] == "sustain":  # from sustain.host import kernel
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def _within(module: str, allowed: set[str]) -> bool:
    return any(module == each or module.startswith(each + ".") for each in allowed)


def is_pure(name: str, source: str) -> bool:
    docstring = ast.get_docstring(ast.parse(source)) or ""
    return name in ("decide.py", "budget.py") or re.search(r"\bPure[.,:]", docstring) is not None


def impurities(source: str, pure_modules: set[str]) -> list[str]:
    """What in `source` could read a clock or the outside world."""
    tree = ast.parse(source)
    found = [
        f"line {line}: imports {module}"
        for line, module in _imports(tree)
        if not _within(module, PURE_IMPORTS | pure_modules)
    ]
    for node in ast.walk(tree):
        called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        if called in PURE_CALLS_REFUSED:
            found.append(f"line {node.lineno}: calls {called}")
        if isinstance(node, (ast.AsyncFunctionDef, ast.Global)):
            found.append(f"line {node.lineno}: {type(node).__name__}")
    return found


def climbs(source: str) -> list[str]:
    """Imports of `host/` that reach above it."""
    return [
        f"line {line}: imports {module}"
        for line, module in _imports(ast.parse(source))
        if module.split(".")[0] == "sustain" and module != "sustain" and not _within(module, BELOW_HOST)
    ]


def kernel_paths(source: str) -> list[str]:
    """String constants that name files under /proc or /sys, docstrings aside."""
    tree = ast.parse(source)
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return [
        f"line {node.lineno}: {node.value!r}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in prose
        and re.match(r"/(proc|sys)/[\w{]\S*$", node.value)
    ]


def _modules() -> dict[str, str]:
    return {
        ".".join(("sustain", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path.read_text()
        for path in sorted(PACKAGE.rglob("*.py"))
    }


MODULES = _modules()
PURE = {name for name, source in MODULES.items() if is_pure(name.rpartition(".")[2] + ".py", source)}


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_read_no_clock_and_no_outside_world(name: str) -> None:
    assert impurities(MODULES[name], PURE) == []


def test_the_modules_that_must_be_pure_are_seen_as_such() -> None:
    assert {"sustain.units", "sustain.store.status", "sustain.failover.decide"} <= PURE


@pytest.mark.parametrize("name", sorted(name for name in MODULES if _within(name, {"sustain.host"})))
def test_host_imports_nothing_above_it(name: str) -> None:
    assert climbs(MODULES[name]) == []


@pytest.mark.parametrize("name", sorted(name for name in MODULES if not _within(name, {"sustain.host"})))
def test_only_host_reads_kernel_files(name: str) -> None:
    assert kernel_paths(MODULES[name]) == []


@pytest.mark.parametrize(
    "bad",
    [
        "import time",
        "from time import monotonic",
        "import os.path",
        "def f():\n    import datetime",
        "from sustain.host import kernel",
        "from sustain import _native",
        "import sustain.clock",
        "def f():\n    return open('x')",
        "import random",
    ],
)
def test_the_purity_checker_sees(bad: str) -> None:
    assert impurities(bad, {"sustain.units"}) != []
    assert impurities("import math\nfrom sustain.units import parse_size\n" + bad, {"sustain.units"}) != []


def test_the_purity_checker_allows_what_does_not_run() -> None:
    assert (
        impurities(
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from os import PathLike\n", set()
        )
        == []
    )


@pytest.mark.parametrize(
    "bad", ["from sustain.cli import main", "import sustain.store", "from sustain import store"]
)
def test_the_host_checker_sees(bad: str) -> None:
    assert climbs(bad) != []
    assert climbs("from sustain.errors import SustainError\nfrom sustain.host import kernel\nimport os") == []


def test_the_kernel_path_checker_sees() -> None:
    assert kernel_paths("open('/proc/self/stat')") != []
    assert kernel_paths("x = f'/sys/block/{name}/size'") != []
    assert kernel_paths('"""Reads /proc/self/stat."""\ny = "see /proc"') == []


def deadlocks(source: str) -> bool:
    """Whether handlers of signals may set an event whose lock the same thread holds: see sustain.signal_event."""
    return "signal.signal(" in source and re.search(r"\bEvent\(\)", source) is not None


def test_handlers_of_signals_set_events_that_have_no_lock() -> None:
    sources = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    assert [path for path, source in sources.items() if deadlocks(source)] == []
    assert deadlocks("stop = threading.Event()\nsignal.signal(15, lambda *_: stop.set())")
    assert not deadlocks("stop = SignalEvent()\nsignal.signal(15, lambda *_: stop.set())")


def rust_files(crate: str) -> dict[str, str]:
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for path in sorted((ROOT / "crates" / crate).rglob("*.rs"))
    }


def _code(source: str) -> str:
    """Rust without its line comments and string contents, roughly: enough to look for names."""
    return re.sub(r'"(?:\\.|[^"\\])*"', '""', re.sub(r"//[^\n]*", "", source))


def knows_python(source: str) -> bool:
    return re.search(r"\b(pyo3|PyObject|Py_\w+|PyResult|GILGuard)\b", _code(source)) is not None


def does_more_than_convert(source: str) -> list[str]:
    """Names in the binding that belong to the engine: files, threads, mappings, system calls."""
    return re.findall(
        r"std::fs\b|std::thread\b|std::net\b|\blibc::|\bmmap\b|\bcrc32c\b|File::open", _code(source)
    )


def test_the_core_knows_no_python() -> None:
    for crate in ("core", "tls"):
        manifest = tomllib.loads((ROOT / f"crates/{crate}/Cargo.toml").read_text())
        dependencies = {*manifest.get("dependencies", {}), *manifest.get("dev-dependencies", {})}
        assert not {name for name in dependencies if "py" in name}
        files = rust_files(crate)
        assert files
        assert [name for name, source in files.items() if knows_python(source)] == []
    assert knows_python("use pyo3::prelude::*;")
    assert not knows_python("// unlike pyo3")


def test_the_binding_only_converts() -> None:
    manifest = tomllib.loads((ROOT / "crates/py/Cargo.toml").read_text())
    assert set(manifest["dependencies"]) <= {"pyo3", "sustain-core", "sustain-tls"}
    binding = rust_files("py")
    assert binding
    assert [(name, does_more_than_convert(source)) for name, source in binding.items()] == [
        (name, []) for name in binding
    ]
    assert does_more_than_convert("let f = std::fs::read(path)?;")


def test_no_file_grows_out_of_sight() -> None:
    """Most modules stay around 150 lines; 800 is where a file has surely become two."""
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in ("src", "crates", "bench", "examples", "sim")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".rs") and not {"target", "tests", "tests.rs"} & set(path.parts)
        if (lines := len(path.read_text().splitlines())) > 800
    }
    assert long == {}
