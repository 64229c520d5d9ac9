"""The documents are about this code: functions they name exist, links lead somewhere, commands are accepted."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from hpcserve.cli import main
from hpcserve.cli.options import load_config
from hpcserve.config import load
from hpcserve.config.schema import leaves
from hpcserve.observability.batch_metrics import batch_families
from hpcserve.observability.metrics import ServiceMetrics
from hpcserve.types import LoadReport, Phase, Status, WorkerId
from tests.options_table import PAGE, with_tables

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "slurm" / "README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
COMMENTED = sorted((ROOT / "configs").glob("*.yaml"))  # they show command lines too

CODE_SPAN = re.compile(r"`([^`\n]+)`")
PLACE = re.compile(r"([\w./-]+\.py)(?::([\w.]+)(?:\(\))?)?")
CALL = re.compile(r"([A-Za-z_][\w.]*)\(\)")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
YAML_BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:\s*[$#] {0,3}|\s+exec |\s+|)(hpcserve [^\n]*)", re.MULTILINE)
INLINE_COMMAND = re.compile(r"`(hpcserve [^`\n]+)`")
SHORTENED = ("...", "…")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def definitions() -> dict[str, set[str]]:
    """Return by file what it defines: functions, classes, and methods as `Class.method`."""
    return {relative(path): set(_defined(path)) for path in sorted((ROOT / "hpcserve").rglob("*.py"))}


def _defined(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{node.name}.{inner.name}"


def wrong_names(text: str) -> list[str]:
    """Return the files and functions in code spans that do not exist."""
    wrong = []
    everything = {name for names in definitions().values() for name in names}
    methods = {name.rpartition(".")[2] for name in everything}
    for span in CODE_SPAN.findall(text):
        if place := PLACE.fullmatch(span):
            file = f"hpcserve/{place[1]}"
            if place[2]:
                wrong += [] if place[2] in definitions().get(file, ()) else [span]
            else:
                wrong += [] if file in definitions() or (ROOT / place[1]).exists() else [span]
        elif (call := CALL.fullmatch(span)) and call[1] not in everything and call[1] not in methods:
            wrong.append(span)
    return wrong


def commands(text: str) -> list[str]:
    """Return the `hpcserve ...` command lines in code blocks and code spans, without those that are shortened."""
    blocks = "\n".join(line for line in text.splitlines() if line.startswith(("    ", "#   ")))
    fenced = "\n".join(re.findall(r"^```(?:bash|console|sh)\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    found = COMMAND.findall(blocks) + COMMAND.findall(fenced) + INLINE_COMMAND.findall(text)
    return [command for command in found if not any(mark in command for mark in SHORTENED)]


def parse(command: str) -> None:
    """Parse a command line as the shell and click would, and load its configuration; run nothing."""
    words = shlex.split(command.partition("     ")[0], comments=True)
    words = words[1 : next((i for i, word in enumerate(words) if word in ("|", ">", "&&", "&", ";")), None)]
    context = main.make_context("hpcserve", words)
    called: click.Command = main
    while isinstance(called, click.Group):
        words = [*context._protected_args, *context.args]
        if called.invoke_without_command and not words:
            break
        name, found, rest = called.resolve_command(context, words)
        assert found is not None
        called, has_options = found, bool(rest)
        context = called.make_context(name, rest, parent=context)
    if name in ("up", "show") and has_options:  # without options it is the command that is meant, not a line to type
        load_config(context)


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HPCSERVE_CONFIG", raising=False)
    monkeypatch.chdir(ROOT)


def test_functions_and_files_that_the_architecture_names_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert len(PLACE.findall(text)) > 50
    assert wrong_names(text) == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_functions_and_files_that_a_page_names_exist(page: Path) -> None:
    assert wrong_names(page.read_text()) == []


def test_a_name_that_does_not_exist_is_noticed() -> None:
    gone = "`frontend/gone.py` `frontend/chat/handlers.py:gone()` `Router.gone()` `gone()` `frontend/body.py:Body.x()`"
    assert len(wrong_names(gone)) == 5


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if "://" in target:
            continue
        file, _, heading = target.partition("#")
        goal = (page.parent / file).resolve() if file else page
        assert goal.exists(), target
        if heading:
            assert heading in {_anchor(line) for line in goal.read_text().splitlines() if line.startswith("#")}, target


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).replace(" ", "-")


@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize("page", [*PAGES, *COMMENTED], ids=relative)
def test_command_lines_are_accepted(page: Path) -> None:
    for command in commands(page.read_text()):
        try:
            parse(command)
        except click.exceptions.Exit:  # of --help
            pass
        except Exception as err:
            pytest.fail(f"{command}\n{err}")


def test_there_are_command_lines() -> None:
    assert len(commands((ROOT / "README.md").read_text())) > 15


@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize(
    "command",
    [
        "hpcserve upp",
        "hpcserve up --nodse 3 --engine mock",
        "hpcserve up --engine mocks",
        "hpcserve up --engine mock --set router.polcy=kv",
        "hpcserve logs a b c",
    ],
)
def test_a_wrong_command_line_is_noticed(command: str) -> None:
    with pytest.raises(Exception):  # noqa: B017  of click's and of ours
        parse(command)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_yaml_blocks_load(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(YAML_BLOCK.findall(page.read_text())):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block)
        load(file=file, assignments=["model.path=/path/to/model"], environ={})


def test_the_configuration_page_lists_every_option() -> None:
    assert PAGE.read_text() == with_tables(PAGE.read_text()), "run python -m tests.options_table --write"


def test_every_option_is_described() -> None:
    assert [leaf.dotted for leaf in leaves().values() if not leaf.description] == []


def test_the_api_page_lists_every_metric() -> None:
    status = Status(
        name="n", phase=Phase.SERVING, model="m", mode="aggregated", policy="kv", cluster="local",
        load={WorkerId("w"): LoadReport()},
    )  # fmt: skip
    text = ServiceMetrics(lambda: status).render(more=batch_families({}, 0, 0, 0)).decode()
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    page = (ROOT / "docs" / "api.md").read_text()
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []
    assert len(names) > 20


def test_no_page_names_a_place_of_one_machine() -> None:
    for page in [*PAGES, *COMMENTED, *sorted((ROOT / "examples").glob("*"))]:
        assert not re.search(r"/(root/|home/(?!you/))|://\S*index", page.read_text()), relative(page)
