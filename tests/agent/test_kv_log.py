from hpcserve.agent.kv_log import KvLog
from hpcserve.types import BlockHash, BlocksCleared, BlocksRemoved, BlocksStored, WorkerId


def hashes(*values: int) -> list[BlockHash]:
    return [BlockHash(value) for value in values]


def test_batches_are_numbered_without_a_gap() -> None:
    log = KvLog(WorkerId("w"))
    assert [log.append([BlocksStored(hashes(n))]).seq for n in range(3)] == [1, 2, 3]


def test_a_snapshot_stands_for_everything_so_far_and_carries_the_last_number() -> None:
    log = KvLog(WorkerId("w"))
    log.append([BlocksStored(hashes(1, 2, 3)), BlocksRemoved(hashes(2))])
    log.append([BlocksRemoved(hashes(9)), BlocksStored(hashes(4))])
    snapshot = log.snapshot()
    assert snapshot.is_snapshot
    assert snapshot.seq == 2
    assert snapshot.events == [BlocksCleared(), BlocksStored(hashes(1, 3, 4))]


def test_a_cleared_cache_has_an_empty_snapshot() -> None:
    log = KvLog(WorkerId("w"))
    log.append([BlocksStored(hashes(1)), BlocksCleared()])
    assert log.snapshot().events == [BlocksCleared(), BlocksStored([])]
