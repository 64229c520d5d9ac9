"""Whether workers fit a partition, and what is said where they do not."""

from typing import Any

import pytest

from hpcserve.cluster.slurm_output import parse_partitions
from hpcserve.cluster.slurm_room import find_partition, refuse_without_room
from hpcserve.config.models import SlurmConfig
from hpcserve.errors import ClusterError

_PARTITIONS = parse_partitions(
    "".join(f"gpu*|gpu{index}|8|20000|gpu:4\n" for index in range(1, 9))
    + "fat|fat1|64|512000|gpu:a100:4\nfat|fat2|64|512000|gpu:a100:4\nempty|e1|0|0|(null)\n"
)


def fits(num_workers: int, partition: str = "gpu", num_nodes: int | None = None, **slurm: Any) -> bool:
    try:
        refuse_without_room(_PARTITIONS[partition], SlurmConfig(**slurm), num_workers, num_nodes)
    except ClusterError:
        return False
    return True


@pytest.mark.parametrize(
    ("slurm", "room"),
    [
        ({"cores": 4}, 16),
        ({"cores": 8}, 8),
        ({"cores": 1}, 32),
        ({"cores": 1, "gpus": 2}, 16),
        ({"cores": 1, "gpus": 0}, 64),
        ({"cores": 1, "gpus": 4, "gpu_request": "none"}, 64),
        ({"cores": 1, "gpus": 0, "memory": "9GB"}, 16),
        ({"cores": 1, "extra_directives": ["--exclusive"]}, 8),
        ({"cores": 9}, 0),
        ({"cores": 1, "gpus": 5}, 0),
        ({"cores": 1, "gpu_type": "a100"}, 0),
    ],
)
def test_the_room_is_bounded_by_the_scarcest_thing(slurm: dict[str, Any], room: int) -> None:
    assert fits(max(room, 1), **slurm) == (room > 0)
    assert not fits(room + 1, **slurm)


def test_a_gpu_type_counts_only_its_own() -> None:
    assert fits(8, "fat", gpu_type="a100")
    assert not fits(1, "fat", gpu_type="h100")


def test_more_nodes_than_there_are_names_how_many_there_are() -> None:
    assert fits(9, num_nodes=8)
    with pytest.raises(ClusterError, match=r"^9 nodes are more than partition 'gpu' has: 8$"):
        refuse_without_room(_PARTITIONS["gpu"], SlurmConfig(), 9, 9)


def test_too_little_room_says_what_a_node_has_and_what_a_worker_wants() -> None:
    with pytest.raises(ClusterError) as caught:
        refuse_without_room(_PARTITIONS["fat"], SlurmConfig(gpus=4, gpu_type="a100", memory="100GB"), 3, None)
    assert caught.value.message == (
        "3 workers are more than partition 'fat' has room for: 2 on 2 nodes of up to 64 cores, 4 GPUs of type a100 and "
        "512000 MiB, with 4 cores, 4 GPUs of type a100, 100GB for each worker"
    )


def test_the_default_partition_is_found() -> None:
    assert find_partition(_PARTITIONS, None).name == "gpu"
    assert find_partition(_PARTITIONS, "fat").name == "fat"


def test_an_unknown_partition_lists_those_there_are() -> None:
    with pytest.raises(ClusterError, match=r"^partition 'gpus' does not exist; partitions here: empty, fat, gpu$"):
        find_partition(_PARTITIONS, "gpus")


def test_a_cluster_without_a_default_partition_asks_for_one() -> None:
    with pytest.raises(
        ClusterError, match=r"no default partition; set cluster.slurm.partition \(partitions here: fat\)"
    ):
        find_partition(parse_partitions("fat|fat1|64|512000|gpu:a100:4\n"), None)
