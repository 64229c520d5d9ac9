"""The store of files and batches: whole or not there, shared by processes, each tenant's its own."""

from __future__ import annotations

import multiprocessing
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from hpcserve.errors import BadRequest, BodyTooLarge, NotFound, StorageFailed
from hpcserve.jobs import BatchRecord, FileRecord, JobStore, RequestCounts, new_batch_id, new_file_id
from hpcserve.jobs.pages import Wanted

NOW = 1_000_000


@pytest.fixture
def store(tmp_path):
    return JobStore(tmp_path / "jobs")


def file(store, tenant="ann", content=b"{}\n", purpose="batch", expires_at=None):
    record = FileRecord(
        id=new_file_id(),
        tenant=tenant,
        filename="in.jsonl",
        purpose=purpose,
        bytes=len(content),
        created_at=NOW,
        expires_at=expires_at,
    )
    with store.files.blobs.writer(record.id, 1000) as writer:
        writer.write(content)
        writer.keep()
    store.files.add(record)
    return record


def batch(store, tenant="ann", source=None, **fields):
    record = BatchRecord(
        id=new_batch_id(),
        tenant=tenant,
        endpoint="/v1/completions",
        input_file_id=(source or file(store, tenant)).id,
        completion_window="24h",
        created_at=NOW,
        expires_at=NOW + 86400,
        **fields,
    )
    store.batches.add(record)
    return record


def change(**fields):
    return lambda record: msgspec.structs.replace(record, **fields)


def test_what_is_kept_is_there_for_the_next_process_and_for_its_owner_alone(store):
    kept, made = file(store, content=b"abc\n"), batch(store)
    again = JobStore(store.directory)
    assert again.files.get("ann", kept.id, NOW) == kept
    assert again.files.path(kept).read_bytes() == b"abc\n"
    assert again.batches.get("ann", made.id) == made
    for find in (lambda: again.files.get("bob", kept.id, NOW), lambda: again.batches.get("bob", made.id)):
        with pytest.raises(NotFound):
            find()


def test_nobody_else_on_the_host_can_read_it(store):
    kept = file(store)
    for path in (store.directory, store.directory / "files", store.working_directory("batch_1")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in (store.directory / "jobs.sqlite", store.files.path(kept)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_over_the_limit_leaves_nothing(store):
    with store.files.blobs.writer(new_file_id(), 10) as writer:
        writer.write(b"12345678")
        with pytest.raises(BodyTooLarge):
            writer.write(b"9012")
    assert list((store.directory / "files").iterdir()) == []


def test_a_file_that_was_not_kept_leaves_nothing(store):
    with store.files.blobs.writer(new_file_id(), 10) as writer:
        writer.write(b"1234")
    assert list((store.directory / "files").iterdir()) == []


def test_pages_follow_each_other_in_either_order(store):
    ids = [file(store).id for _ in range(5)]
    file(store, "bob")
    first = store.files.page("ann", Wanted(limit=2), NOW)
    assert [each.id for each in first.items] == ids[:2:-1]
    assert first.has_more
    second = store.files.page("ann", Wanted(limit=3, after=first.items[-1].id), NOW)
    assert [each.id for each in second.items] == ids[2::-1]
    assert not second.has_more
    upwards = store.files.page("ann", Wanted(limit=9, after=ids[1], order="asc"), NOW)
    assert [each.id for each in upwards.items] == ids[2:]
    with pytest.raises(NotFound):
        store.files.page("bob", Wanted(limit=2, after=ids[0]), NOW)


def test_files_are_found_by_purpose(store):
    file(store)
    result = file(store, purpose="batch_output")
    page = store.files.page("ann", Wanted(limit=9, purpose="batch_output"), NOW)
    assert [each.id for each in page.items] == [result.id]


def test_a_file_goes_with_its_bytes_but_not_while_a_batch_reads_it(store):
    source = file(store)
    made = batch(store, source=source)
    with pytest.raises(BadRequest, match=made.id):
        store.files.remove("ann", source.id)
    store.batches.change(made.id, change(status="completed"))
    with pytest.raises(NotFound):
        store.files.remove("bob", source.id)
    store.files.remove("ann", source.id)
    assert not store.files.path(source).exists()
    with pytest.raises(NotFound):
        store.files.remove("ann", source.id)


def test_a_batch_needs_a_file_of_its_tenant(store):
    with pytest.raises(NotFound):
        batch(store, source=file(store, "bob"))


def test_expired_files_are_not_found_and_then_swept_unless_a_batch_reads_them(store):
    gone, used = file(store, expires_at=NOW + 10), file(store, expires_at=NOW + 10)
    made = batch(store, source=used)
    store.files.get("ann", gone.id, NOW + 9)
    with pytest.raises(NotFound):
        store.files.get("ann", gone.id, NOW + 10)
    assert store.files.page("ann", Wanted(limit=9), NOW + 10).items == []
    assert store.files.sweep(NOW + 10) == 1
    assert store.files.path(used).exists()
    store.batches.change(made.id, change(status="failed"))
    assert store.files.sweep(NOW + 10) == 1
    assert list((store.directory / "files").iterdir()) == []


def test_what_a_crash_left_is_swept_when_it_is_old(store):
    left, young = store.directory / "files" / "file-1.part", store.directory / "files" / "file-2"
    for path in (left, young):
        path.write_bytes(b"x")
    long_ago = time.time() - 100_000
    os.utime(left, (long_ago, long_ago))
    kept = file(store)
    os.utime(store.files.path(kept), (long_ago, long_ago))
    assert store.files.sweep(NOW) == 1
    assert not left.exists()
    assert young.exists()
    assert store.files.path(kept).exists()


def test_results_become_files_once_however_often_that_is_tried(store, tmp_path):
    made, output = batch(store), tmp_path / "output.jsonl"
    output.write_bytes(b"1\n2\n")
    for _ in range(2):
        assert store.files.blobs.take(made.result_id("output"), output) == 4
        store.files.add(file_of(made))
    assert len(store.files.page("ann", Wanted(limit=9, purpose="batch_output"), NOW).items) == 1


def file_of(made):
    return FileRecord(
        id=made.result_id("output"), tenant="ann", filename="o", purpose="batch_output", bytes=4, created_at=NOW
    )


def test_unfinished_batches_are_listed_in_the_order_they_came(store):
    made = [batch(store, tenant) for tenant in ("ann", "bob", "ann")]
    assert store.batches.has_unfinished()
    store.batches.change(made[0].id, change(status="cancelled"))
    store.batches.change(made[2].id, change(status="in_progress", counts=RequestCounts(total=5, completed=2)))
    assert [each.id for each in store.batches.unfinished()] == [made[1].id, made[2].id]
    by_status, counts = store.batches.counts()
    assert by_status == {"cancelled": 1, "in_progress": 1, "validating": 1}
    assert (counts.total, counts.completed) == (5, 2)


def test_a_step_that_raises_changes_nothing(store):
    made = batch(store)

    def refuse(record):
        raise BadRequest("no")

    with pytest.raises(BadRequest):
        store.batches.change(made.id, refuse)
    assert store.batches.get("ann", made.id) == made


def count_up(directory: Path, batch_id: str, times: int) -> None:
    store = JobStore(directory)
    for _ in range(times):
        store.batches.change(
            batch_id,
            lambda now: msgspec.structs.replace(
                now, counts=msgspec.structs.replace(now.counts, completed=now.counts.completed + 1)
            ),
        )


def test_no_change_is_lost_between_processes_and_threads(store):
    made = batch(store)
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=count_up, args=(store.directory, made.id, 20)) for _ in range(2)]
    for each in others:
        each.start()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: count_up(store.directory, made.id, 10), range(4)))
    for each in others:
        each.join(50)
        assert each.exitcode == 0
    assert store.batches.get("ann", made.id).counts.completed == 80


def test_a_directory_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(StorageFailed, match="taken"):
        JobStore(tmp_path / "taken")


def test_a_damaged_database_is_an_error_of_ours_that_says_which_file(store):
    (store.directory / "jobs.sqlite").write_bytes(b"nonsense" * 1000)
    with pytest.raises(StorageFailed, match=r"jobs\.sqlite"):
        store.batches.unfinished()
