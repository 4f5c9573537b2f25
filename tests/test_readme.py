"""The README's example runs as it stands there, and what it points to exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_examples_run(tmp_path: Path) -> None:
    assert EXAMPLES
    for example in EXAMPLES:
        done = subprocess.run(
            [sys.executable, "-c", example],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_the_example_is_checked_in_earnest(tmp_path: Path) -> None:
    """Without its commit the example must fail, or it shows nothing."""
    broken = EXAMPLES[0].replace("    store.commit()", "    pass  #", 1)
    assert broken != EXAMPLES[0]
    done = subprocess.run(
        [sys.executable, "-c", broken], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_commands_named_exist() -> None:
    from sustain.cli import VERBS

    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"`sustain ([a-z]+)[` ]", text)) | set(
        re.findall(r"^sustain ([a-z]+) ", text, re.M)
    )
    assert len(named) > 5
    assert named <= set(VERBS)
