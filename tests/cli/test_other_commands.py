"""status, down, logs, key, config, tiny-model, version and completion."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from fake_serve import SERVING, FakeServe, make_status

from hpcserve.config import Config
from hpcserve.errors import DeploymentError
from hpcserve.state import StateDir
from hpcserve.types import Phase


@pytest.fixture
def serving(home: Path) -> FakeServe:
    fake = FakeServe([[SERVING]], last=SERVING)
    fake.start(Config.model_validate({"engine": {"kind": "mock"}}))
    fake.calls.clear()
    return fake


def another(name: str) -> StateDir:
    state = StateDir.of(name)
    state.create()
    state.write_config(Config.model_validate({"engine": {"kind": "mock"}, "name": name}))
    return state


# --- status -------------------------------------------------------------------------------------------------------


def test_status_shows_the_only_deployment(run, serving: FakeServe) -> None:
    result = run("status", serve=serving)
    assert result.exit_code == 0
    rows = dict(line.strip().split(maxsplit=1) for line in result.stdout.splitlines())
    assert rows["phase"] == "serving"
    assert rows["head"] == "pid 4241 on login1"
    assert rows["warning:"] == "RDMA is not there: sockets are used"
    assert rows["both-0-a1"].split()[:4] == ["both", "17", "READY", "gpu1"]


def test_status_as_json_is_an_object_with_a_name_and_a_list_without(run, serving: FakeServe) -> None:
    one = json.loads(run("status", "--name", "default", "--json", serve=serving).stdout)
    assert one["phase"] == "serving"
    assert one["workers"][0]["load"]["num_running"] == 2
    assert [one] == json.loads(run("status", "--json", serve=serving).stdout)


def test_status_of_what_does_not_run_exits_with_5(run, serving: FakeServe) -> None:
    serving.last = make_status(Phase.FAILED, detail="the head is gone")
    result = run("status", serve=serving)
    assert result.exit_code == 5
    assert "failed: the head is gone" in result.stdout


def test_status_lists_several(run, serving: FakeServe) -> None:
    another("second")
    result = run("status", serve=serving)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 3


def test_status_of_nothing_says_so(run) -> None:
    result = run("status", serve=FakeServe([[]]))
    assert (result.exit_code, result.stderr) == (5, "error: no deployment was started here; `hpcserve up` starts one\n")
    assert json.loads(run("status", "--json", serve=FakeServe([[]])).stdout) == []


def test_status_can_be_watched(run, serving: FakeServe) -> None:
    serving.watches = [[SERVING, make_status(Phase.STOPPED)]]
    result = run("status", "--watch", "--json", serve=serving)
    assert [json.loads(line)["phase"] for line in result.stdout.splitlines()] == ["serving", "stopped"]
    assert "stopped" in run("status", "--watch", serve=serving).stderr


# --- which deployment ---------------------------------------------------------------------------------------------


def test_an_unknown_name_gets_the_nearest(run, serving: FakeServe) -> None:
    result = run("down", "--name", "defualt", serve=serving)
    assert result.exit_code == 5
    assert result.stderr == "error: no deployment called 'defualt'; did you mean 'default'?\n"


def test_with_several_the_name_is_needed(run, serving: FakeServe, monkeypatch: pytest.MonkeyPatch) -> None:
    another("second")
    result = run("down", serve=serving)
    assert (result.exit_code, serving.calls) == (5, [])
    assert "there are several deployments (default, second); say which with --name" in result.stderr
    monkeypatch.setenv("HPCSERVE_NAME", "default")
    assert run("down", serve=serving).exit_code == 0


# --- down ---------------------------------------------------------------------------------------------------------


def test_down_returns_when_it_is_stopped(run, serving: FakeServe) -> None:
    result = run("down", serve=serving)
    assert (result.exit_code, result.stdout) == (0, "default is down\n")
    assert serving.calls == ["stop force=False", "stopped"]


def test_down_of_what_does_not_run_exits_with_5(run, serving: FakeServe) -> None:
    assert run("down", serve=serving).exit_code == 0
    result = run("down", serve=serving)
    assert (result.exit_code, result.stdout) == (5, "")
    assert "error: deployment 'default' is not running" in result.stderr


def test_down_can_force_and_print_json(run, serving: FakeServe) -> None:
    serving.stops = [[make_status(Phase.DRAINING), make_status(Phase.STOPPED)]]
    result = run("down", "--force", "--json", serve=serving)
    assert json.loads(result.stdout)["phase"] == "stopped"
    assert serving.calls[0] == "stop force=True"


# --- logs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def logs(serving: FakeServe) -> Path:
    folder = StateDir.of("default").logs
    (folder / "head.log").write_text("one\ntwo\nthree\n")
    (folder / "decode-3-a91f.log").write_text("".join(f"line {number}\n" for number in range(50_000)))
    return folder


def test_logs_of_one_are_printed_plainly(run, logs: Path) -> None:
    assert run("logs", "head").stdout == "one\ntwo\nthree\n"
    assert run("logs", "head", "-n", "2").stdout == "two\nthree\n"
    assert run("logs", "head", "-n", "0").stdout == ""


def test_logs_of_a_worker_are_found_by_the_beginning_of_its_name(run, logs: Path) -> None:
    lines = run("logs", "decode-3", "-n", "20000").stdout.splitlines()
    assert lines == [f"line {number}" for number in range(30_000, 50_000)]
    (logs / "decode-3-b222.log").touch()
    result = run("logs", "decode-3")
    assert result.exit_code == 5
    assert "'decode-3' is the beginning of several: decode-3-a91f, decode-3-b222" in result.stderr


def test_logs_of_all_carry_their_names(run, logs: Path) -> None:
    assert run("logs", "-n", "1").stdout == "decode-3-a91f | line 49999\nhead | three\n"


def test_logs_of_an_unknown_worker_name_those_there_are(run, logs: Path) -> None:
    result = run("logs", "haed")
    assert (result.exit_code, "did you mean 'head'?" in result.stderr) == (5, True)


def test_logs_follow_what_is_added_and_files_that_appear(logs: Path) -> None:
    from hpcserve.cli.log_files import Follower

    follower = Follower(logs / "head.log", from_end=True)
    assert follower.new_lines() == []
    with (logs / "head.log").open("a") as file:
        file.write("four\nfi")
        file.flush()
        assert follower.new_lines() == ["four"]
        file.write("ve\n")
        file.flush()
        assert follower.new_lines() == ["five"]
    (logs / "head.log").write_text("new\n")
    assert follower.new_lines() == ["new"]
    assert Follower(logs / "later.log", from_end=True).new_lines() == []


def test_logs_that_are_followed_end_with_an_interrupt(run, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcserve.cli import logs as command

    def rounds() -> Iterator[None]:
        (logs / "new.log").write_text("hello\n")
        yield
        yield
        raise KeyboardInterrupt

    clock = rounds()
    monkeypatch.setattr(command.time, "sleep", lambda _: next(clock))
    result = run("logs", "-f", "-n", "0")
    assert result.exit_code == 130
    assert result.stdout == "new | hello\n"


# --- the rest -----------------------------------------------------------------------------------------------------


def test_key_prints_the_key_or_where_it_is(run, serving: FakeServe) -> None:
    state = StateDir.of("default")
    assert run("key").stdout.strip() == state.read_key()
    assert run("key", "--path").stdout.strip() == str(state.key_file)
    header_file = Path(run("key", "--header").stdout.strip())
    assert header_file.read_text() == f"Authorization: Bearer {state.read_key()}\n"


def test_config_show_prints_yaml_that_says_where_values_come_from(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPCSERVE_ROUTER__POLICY", "random")
    text = run("config", "show", "--engine", "mock").stdout
    assert yaml.safe_load(text)["router"]["policy"] == "random"
    assert "# $HPCSERVE_ROUTER__POLICY" in text
    assert "# --engine" in text


def test_config_schema_is_json_schema(run) -> None:
    assert "pools" in json.loads(run("config", "schema").stdout)["properties"]


def test_config_path_names_the_file(run, home: Path) -> None:
    assert run("config", "path").stdout == ""
    file = home / ".config/hpcserve/config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("name: own\n")
    assert run("config", "path").stdout == f"{file}\n"


def test_tiny_model_makes_one(run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcserve.engine import tiny_model

    made: list[Path] = []
    monkeypatch.setattr(tiny_model, "make_tiny_model", made.append)
    assert run("tiny-model", str(home / "m")).exit_code == 0
    assert made == [home / "m"]


def test_tiny_model_without_transformers_says_what_to_install(run, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcserve.engine import tiny_model

    def fail(_: Path) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(tiny_model, "make_tiny_model", fail)
    result = run("tiny-model", "m")
    assert result.stderr == "error: making a model needs torch: pip install 'hpcserve[cpu]' (or [gpu])\n"


def test_version(run) -> None:
    from hpcserve import __version__

    assert run("version").stdout == f"hpcserve {__version__}\n"
    assert "dask 20" in run("version", "--verbose").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(run, shell: str) -> None:
    assert "_HPCSERVE_COMPLETE" in run("completion", shell).stdout


def test_names_of_deployments_are_completed(serving: FakeServe) -> None:
    from click.shell_completion import ShellComplete

    from hpcserve.cli import main

    def complete(*args: str) -> list[str]:
        *before, last = args
        completion = ShellComplete(main, {}, "hpcserve", "_HPCSERVE_COMPLETE")
        return [item.value for item in completion.get_completions(before, last)]

    assert complete("down", "--name", "") == ["default"]
    assert complete("up", "--engine", "") == ["vllm", "mock"]
    assert complete("st") == ["status"]


def test_unknown_commands_and_options_get_the_nearest(run) -> None:
    result = run("stauts")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: no command 'stauts'; did you mean 'status'? (see `hpcserve --help`)\n".replace("hpcserve", "main"),
    )
    assert run("--nope").stderr.startswith("error: No such option")
    result = run("up", "--engine", "vlm")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


def test_the_list_of_commands_says_what_each_says_of_itself() -> None:
    import click

    from hpcserve.cli import COMMANDS, main

    context = click.Context(main)
    for name, text in COMMANDS.items():
        command = main.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert (command.help or "").splitlines()[0] == text


def test_a_traceback_is_printed_only_when_asked_for(run, serving: FakeServe, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Traceback" not in run("down", "--name", "x", serve=serving).stderr
    with_traceback = run("--debug", "down", "--name", "x", serve=serving)
    assert with_traceback.exit_code == DeploymentError.exit_code
    assert "Traceback" in with_traceback.stderr
    monkeypatch.setenv("HPCSERVE_DEBUG", "1")
    assert "Traceback" in run("down", "--name", "x", serve=serving).stderr


def test_no_thread_is_left_behind(run, serving: FakeServe) -> None:
    before = set(threading.enumerate())
    run("status", serve=serving)
    assert set(threading.enumerate()) <= before


def test_config_show_without_a_model_shows_the_rest_and_says_what_is_missing(run) -> None:
    result = run("config", "show")
    assert result.exit_code == 0
    assert "policy: kv" in result.stdout
    assert "up would refuse this: model.path" in result.stderr
