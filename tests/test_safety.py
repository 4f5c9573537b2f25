"""docs/safety.md lists exactly the files that hold unsafe code, and each unsafe block there has its
reason."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
UNSAFE = re.compile(r"\bunsafe\s*(?:\{|impl\b|fn\b|extern\b)")


def code(source: str) -> str:
    """Rust without comments and strings, roughly."""
    return re.sub(r'"(?:\\.|[^"\\])*"', '""', re.sub(r"//[^\n]*", "", source))


def files_with_unsafe() -> dict[str, str]:
    sources = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for path in (ROOT / "crates").rglob("*.rs")
        if "target" not in path.parts
    }
    return {name: source for name, source in sources.items() if UNSAFE.search(code(source))}


def test_the_page_lists_the_files_with_unsafe_code() -> None:
    page = (ROOT / "docs/safety.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(crates/[^`]+)`", page, re.MULTILINE))
    assert listed == set(files_with_unsafe())


def test_each_file_gives_reasons() -> None:
    """Clippy asks for a comment at every block; this says that they are not only there by allowance."""
    for name, source in files_with_unsafe().items():
        assert "SAFETY:" in source or "# Safety" in source, name
        assert "allow(clippy::undocumented_unsafe_blocks)" not in source, name


def test_the_reader_sees_unsafe_code() -> None:
    assert UNSAFE.search(code("let x = unsafe { f() };"))
    assert UNSAFE.search(code("unsafe impl Send for X {}"))
    assert not UNSAFE.search(code('// unsafe { }\nlet s = "unsafe { }";'))
