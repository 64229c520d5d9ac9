"""How one configuration comes out of several places."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcserve.config import Setting, load
from hpcserve.config.load import find_file
from hpcserve.errors import ConfigError

MOCK = "engine.kind=mock"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "hpcserve.yaml"
    path.write_text("engine:\n  kind: mock\nrouter:\n  policy: random\n")
    return path


def wrong(**given: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(**{"environ": {}, **given})  # type: ignore[arg-type]
    return caught.value.message.splitlines()


def test_each_place_wins_over_the_one_below(file: Path) -> None:
    environ = {"HPCSERVE_ROUTER__POLICY": "round_robin"}
    flag = Setting(("router", "policy"), "kv", "--policy")
    assignment = "router.policy=least_loaded"

    def policy(**given: object) -> tuple[str, str]:
        loaded = load(**{"environ": {}, "file": file, **given})  # type: ignore[arg-type]
        return loaded.config.router.policy, loaded.origins["router.policy"]

    assert policy(file=None, assignments=[MOCK]) == ("kv", "default")
    assert policy() == ("random", f"{file}:4")
    assert policy(environ=environ) == ("round_robin", "$HPCSERVE_ROUTER__POLICY")
    assert policy(environ=environ, assignments=[assignment]) == ("least_loaded", "--set")
    assert policy(environ=environ, assignments=[assignment], flags=[flag]) == ("kv", "--policy")


def test_every_leaf_has_an_origin() -> None:
    from hpcserve.config.schema import leaves

    origins = load(assignments=[MOCK], environ={}).origins
    assert set(origins) == {leaf.dotted for leaf in leaves().values()}


def test_the_file_is_the_given_one_then_the_environments_then_the_users_own(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_file({}) is None
    own = tmp_path / ".config/hpcserve/config.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("name: own\nengine: {kind: mock}\n")
    assert load(environ={}).config.name == "own"
    assert load(environ={"HPCSERVE_CONFIG": str(file)}).file == file
    assert load(file=file, environ={"HPCSERVE_CONFIG": "/nowhere"}).file == file


def test_variables_of_hpcserve_that_are_no_keys_are_left_alone(file: Path) -> None:
    environ = {"HPCSERVE_STATE_DIR": "/x", "HPCSERVE_CONFIG": str(file), "HPCSERVE_DEBUG": "1", "HPCSERVE_NAME": ""}
    assert load(environ=environ).config.name == "default"


def test_paths_become_absolute_and_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    given = ["model.path=models/tiny", "model.chat_template=~/chat.jinja", "cluster.scratch=$TMPDIR"]
    config = load(assignments=given, environ={}).config
    assert config.model.path == tmp_path / "models/tiny"
    assert config.model.chat_template == Path("/home/ada/chat.jinja")
    assert config.cluster.scratch == Path("$TMPDIR")


@pytest.mark.parametrize(
    ("assignment", "section", "value"),
    [
        ("cluster.slurm.account=0123", "account", "0123"),
        ("cluster.slurm.walltime=4:00:00", "walltime", "4:00:00"),
        ("cluster.slurm.modules=[gcc/12, 3.10]", "modules", ["gcc/12", "3.10"]),
        ("cluster.slurm.partition=", "partition", None),
        ("cluster.slurm.qos=null", "qos", None),
        ("cluster.slurm.constraint=true", "constraint", "true"),
    ],
)
def test_texts_stay_as_they_were_written(assignment: str, section: str, value: object) -> None:
    config = load(assignments=[MOCK, assignment], environ={}).config
    assert getattr(config.cluster.slurm, section) == value


def test_on_and_off_are_words_not_truth_values(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("engine: {kind: mock}\nsecurity:\n  auth: off\n")
    assert load(file=file, environ={}).config.security.auth == "off"
    args = load(assignments=[MOCK, "engine.vllm.args.mode=off"], environ={}).config.engine.vllm.args
    assert args == {"mode": "off"}


def test_open_sections_take_any_key_and_merge(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("engine:\n  kind: mock\n  vllm:\n    args: {max_num_seqs: 8, compilation: {level: 3, 1: one}}\n")
    loaded = load(file=file, assignments=["engine.vllm.args.enforce_eager=true"], environ={})
    args = loaded.config.engine.vllm.args
    assert args == {"max_num_seqs": 8, "compilation": {"level": 3, "1": "one"}, "enforce_eager": True}
    assert loaded.origins["engine.vllm.args.enforce_eager"] == "--set"
    assert loaded.origins["engine.vllm.args.max_num_seqs"] == f"{file}:4"


def test_a_section_whose_keys_are_all_commented_out_is_empty(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("engine:\n  kind: mock\nrouter:\n  # policy: kv\nfrontend: {}\n")
    assert load(file=file, environ={}).config.router.policy == "kv"


def test_merge_keys_and_anchors_work(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("engine: {kind: mock, mock: &fast {speedup: .inf, num_kv_blocks: 4}}\n")
    assert load(file=file, environ={}).config.engine.mock.speedup == float("inf")


def test_infinity_survives_the_way_through_json() -> None:
    config = load(assignments=[MOCK, "engine.mock.speedup=.inf"], environ={}).config
    assert type(config).model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("router:\n  polcy: kv\n", "router.polcy (FILE:2): unknown key; did you mean 'policy'?"),
        ("partition: gpu\n", "partition (FILE:1): unknown key; did you mean 'cluster.slurm.partition'?"),
        ("router.policy: kv\n", "router.policy (FILE:1): unknown key; keys are nested: write one level a line"),
        ("name: a\nrouter: kv\n", "router = 'kv' (FILE:2): this is a section; it holds: policy, "),
        ("name:\n  x: 1\n", "name.x (FILE:2): unknown key; did you mean 'name'?"),
        ("frontend:\n  port: 99999\n", "frontend.port = 99999 (FILE:2): must be less than or equal to 65535"),
        ("frontend: {port: true}\n", "frontend.port = True (FILE:1): must be a number"),
        ("frontend: {port: 1.5}\n", "frontend.port = 1.5 (FILE:1): must be a"),
        ("router: {policy: kvv}\n", "router.policy = 'kvv' (FILE:1): not one of its values; did you mean 'kv'?"),
        ("cluster:\n  slurm:\n    walltime: soon\n", "cluster.slurm.walltime = 'soon' (FILE:3): must be [days-]hours"),
        ("cluster:\n  slurm: {memory: 64}\n", "cluster.slurm.memory = '64' (FILE:2): must be a number and its unit"),
        ("cluster: {slurm: {modules: gcc}}\n", "cluster.slurm.modules = 'gcc' (FILE:1): must be a list"),
        ("name: Big Name\n", "name = 'Big Name' (FILE:1): must be lower-case letters, digits and dashes"),
        ("pools: {prefill: 0}\n", "pools.prefill = 0 (FILE:1): must be greater than 0"),
        ("name: a\nname: b\n", "FILE:2: not valid YAML: key 'name' is repeated; it was first on line 1"),
        ("name: [a\n", "FILE:2: not valid YAML: "),
        ("- name\n", "FILE:1: keys with values are expected, such as `name: demo`"),
        ("just text\n", "FILE:1: keys with values are expected"),
        ("a: &a\n  b: *a\n", "FILE:1: not valid YAML: a node that holds itself"),
        ("name: !!python/name:os.system x\n", "FILE:1: not valid YAML: "),
        ("name: a\n---\nname: b\n", "FILE:2: not valid YAML: "),
        ("name: \x01\n", "FILE: not valid YAML: "),
        ("? [a]\n: b\n", "FILE:1: "),
    ],
)
def test_a_mistake_in_a_file_is_one_line_with_place_and_remedy(tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    lines = wrong(file=file, assignments=[MOCK] if "engine" not in text else [])
    assert len(lines) == 1
    assert lines[0].startswith(line.replace("FILE", str(file)))


def test_several_mistakes_are_one_line_each(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("polcy: kv\nfrontend: {port: x}\nengine: {kind: mok}\n")
    lines = wrong(file=file, environ={"HPCSERVE_ROUTER_POLICY": "kv"})
    assert [line.split(" (")[0] for line in lines] == [
        "polcy",
        "$HPCSERVE_ROUTER_POLICY: no such setting; did you mean 'HPCSERVE_ROUTER__POLICY'?",
        "engine.kind = 'mok'",
        "frontend.port = 'x'",
    ]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    assert wrong(file=tmp_path / "none.yaml") == [
        f"configuration file {tmp_path}/none.yaml cannot be read: No such file or directory"
    ]
    assert "Is a directory" in wrong(file=tmp_path)[0]
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert wrong(file=binary) == [f"{binary}: not a text file in UTF-8"]


@pytest.mark.parametrize("assignment", ["router.policy", "=kv", "router..policy=kv"])
def test_an_assignment_needs_a_key_and_an_equals_sign(assignment: str) -> None:
    assert wrong(assignments=[assignment]) == [f"--set {assignment}: write it as --set section.key=value"]


def test_vllm_needs_a_model() -> None:
    (line,) = wrong()
    assert line.startswith("model.path is not set, and engine.kind = 'vllm' (default) needs it: give --model")


def test_an_engine_does_not_span_jobs() -> None:
    (line,) = wrong(assignments=[MOCK, "cluster.kind=slurm", "model.tensor_parallel=8", "cluster.slurm.gpus=4"])
    assert line.startswith("model.tensor_parallel = 8 (--set) is more than cluster.slurm.gpus = 4 (--set)")


def test_slurm_flags_contradict_a_local_cluster_but_keys_in_a_file_wait(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("engine: {kind: mock}\ncluster: {kind: local, slurm: {partition: gpu}}\n")
    assert load(file=file, environ={}).config.cluster.slurm.partition == "gpu"
    (line,) = wrong(file=file, flags=[Setting(("cluster", "slurm", "partition"), "gpu", "--partition")])
    assert line == f"--partition is for Slurm, but cluster.kind = 'local' ({file}:2)"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            ("min_workers=3", "max_workers=2"),
            "planner.min_workers = 3 (--set) is more than planner.max_workers = 2 (--set)",
        ),
        (("enabled=true", "max_workers=1"), "planner.max_workers = 1 (--set) is less than the 2 workers"),
        (("enabled=true", "min_workers=3"), "planner.min_workers = 3 (--set) is more than the 2 workers"),
    ],
)
def test_the_planners_bounds_fit_each_other_and_the_pools(settings: tuple[str, ...], complaint: str) -> None:
    (line,) = wrong(assignments=[MOCK, "pools.workers=2", *(f"planner.{each}" for each in settings)])
    assert line.startswith(complaint)


def test_a_frontend_needs_something_to_listen_on() -> None:
    with pytest.raises(ConfigError, match=r"frontend\.tcp = false .* leaves nothing to listen on: give --unix-socket"):
        load(assignments=["engine.kind=mock", "frontend.tcp=false"])
    load(assignments=["engine.kind=mock", "frontend.tcp=false", "frontend.unix_socket=a/s"])


@pytest.mark.parametrize(("given", "missing"), [("tls_cert", "tls_key"), ("tls_key", "tls_cert")])
def test_certificate_and_key_come_together(given: str, missing: str) -> None:
    with pytest.raises(ConfigError, match=rf"frontend\.{given} \(.*\) needs frontend\.{missing}: give both or neither"):
        load(assignments=["engine.kind=mock", f"frontend.{given}=a.pem"])
