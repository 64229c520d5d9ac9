"""The site file: it loads, it says what was found, and the partition takes what it asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpcserve.cluster.slurm_settings import SlurmSettings
from hpcserve.config import Config, load
from hpcserve.doctor.check import Outcome
from hpcserve.doctor.examine import Examination
from hpcserve.doctor.probe_job import ProbeResult
from hpcserve.doctor.rendezvous import Visit
from hpcserve.doctor.site import render_site
from hpcserve.doctor.slurm_checks import check_gpus, check_memory
from tests.doctor.conftest import make_config, make_report


def seen(settings: SlurmSettings, partition: str, config: Config | None = None, **given: Any) -> Examination:
    return Examination(
        config=config or make_config(partition=partition),
        kind="slurm",
        settings=settings,
        partition=settings.nodes[partition],
        here=given.pop("here", make_report(host="login1")),
        **given,
    )


def loaded(text: str, tmp_path: Path) -> Config:
    file = tmp_path / "site.yaml"
    file.write_text(text)
    return load(file=file, environ={}, allow_contradictions=True).config


def test_the_file_holds_what_was_found(large: SlurmSettings, tmp_path: Path) -> None:
    config = loaded(render_site(seen(large, "gpu", make_config("vllm", partition="gpu"))), tmp_path)
    slurm = config.cluster.slurm
    assert (config.cluster.kind, config.cluster.interface) == ("slurm", "ib0")
    assert (slurm.partition, slurm.account, slurm.walltime) == ("gpu", "proj-0042", "2-00:00:00")
    assert (slurm.gpus, slurm.gpu_request, slurm.gpu_type, slurm.cores) == (1, "gres", "a100", 32)
    assert slurm.memory == "113GB", "a quarter of a node, as the default of 1800 MB a core is small"
    assert slurm.python
    assert slurm.skip_directives == []


def test_a_cluster_that_does_not_count_memory_is_not_asked_for_any(small: SlurmSettings, tmp_path: Path) -> None:
    config = loaded(render_site(seen(small, "batch", make_config(gpu_request="gpus-per-node"))), tmp_path)
    assert config.cluster.slurm.skip_directives == ["--mem"]
    assert config.cluster.slurm.gpu_request == "gres", "select/cons_res knows no other"
    assert config.cluster.slurm.walltime is None


def test_a_partition_without_gpus_is_asked_for_none(large: SlurmSettings, tmp_path: Path) -> None:
    config = loaded(render_site(seen(large, "cpu")), tmp_path)
    assert (config.cluster.slurm.gpu_request, config.cluster.slurm.requested_gpus) == ("none", 0)


def test_what_was_given_is_kept(large: SlurmSettings, tmp_path: Path) -> None:
    given = make_config(
        partition="gpu", walltime="04:00:00", account="proj-0043", qos="normal", cores=16, memory="90GB", gpus=2,
        gpu_type="h100", modules=["gcc/12.3"], prologue=['export X="a b"'], extra_directives=["--licenses=fs:1"],
        python="/other/python",
    )  # fmt: skip
    found = loaded(render_site(seen(large, "gpu", given)), tmp_path).cluster.slurm
    assert found.model_dump(exclude_defaults=True) == given.cluster.slurm.model_dump(exclude_defaults=True) | {
        "gpus": 2
    }


def test_the_interface_is_one_that_all_hosts_have(large: SlurmSettings, tmp_path: Path) -> None:
    without = make_report(interfaces={"lo": "127.0.0.1", "eth0": "10.0.1.9"})
    probe = ProbeResult(visits=[Visit(report=without)])
    assert loaded(render_site(seen(large, "gpu", probe=probe)), tmp_path).cluster.interface is None
    unnamed = make_report(address="127.0.1.1", interfaces={"lo": "127.0.0.1", "eth0": "10.0.0.1"})
    assert loaded(render_site(seen(large, "gpu", probe=probe, here=unnamed)), tmp_path).cluster.interface == "eth0"


@pytest.mark.parametrize("partition", ["gpu", "scavenge", "cpu"])
def test_the_doctor_has_no_objection_to_its_own_file(large: SlurmSettings, partition: str, tmp_path: Path) -> None:
    config = loaded(render_site(seen(large, partition)), tmp_path)
    where = large.nodes[partition]
    checks = [*check_gpus(large, config, where), check_memory(large, config, where, None)]
    assert [check for check in checks if check.outcome is Outcome.PROBLEM] == []


def test_on_this_machine_there_is_no_slurm_in_it(tmp_path: Path) -> None:
    config = make_config()
    text = render_site(Examination(config=config, kind="local", here=make_report()))
    assert "slurm:" not in text
    assert loaded(text, tmp_path).cluster.kind == "local"
