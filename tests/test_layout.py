"""Rules of the house that a program can check: sizes, leftovers, layers, and that every shipped file is looked at."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "hpcserve").rglob("*.py"))
MAX_LINES = 300
LEFTOVER = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_sources() -> None:
    assert len(SOURCES) > 30


def test_no_source_is_long() -> None:
    lengths = {relative(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {path: num for path, num in lengths.items() if num > MAX_LINES} == {}


def test_nothing_is_left_for_later() -> None:
    left = [
        f"{relative(path)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if LEFTOVER.search(line)
    ]
    assert left == []


def test_every_module_says_what_it_is() -> None:
    assert [relative(path) for path in SOURCES if not path.read_text().startswith('"""')] == []


@pytest.mark.parametrize("name", ["LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "README.md", "docs/architecture.md"])
def test_the_project_has_its_papers(name: str) -> None:
    assert (ROOT / name).stat().st_size > 500


def test_the_changelog_has_the_version() -> None:
    from hpcserve import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_imports_go_down_only() -> None:
    lint_imports = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [str(lint_imports), "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
