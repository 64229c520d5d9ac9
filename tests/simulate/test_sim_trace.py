import gzip
import json

import pytest

from hpcserve.errors import ConfigError
from hpcserve.simulate import TraceRequest, load_trace

LINE = {"timestamp": 1500, "input_length": 1300, "output_length": 7, "hash_ids": [5, 9, 11]}


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_line_becomes_a_request(tmp_path):
    assert load_trace(write(tmp_path / "t.jsonl", LINE)) == [TraceRequest(1.5, 1300, 7, (5, 9, 11))]


def test_gzip_is_told_by_its_content(tmp_path, excerpt):
    packed = tmp_path / "trace"
    packed.write_bytes(gzip.compress(excerpt.read_bytes()))
    assert load_trace(packed) == load_trace(excerpt)


def test_only_the_first_requests_are_read(excerpt):
    assert len(load_trace(excerpt)) == 200
    assert load_trace(excerpt, 3) == load_trace(excerpt)[:3]


def test_requests_come_by_arrival(tmp_path):
    later = LINE | {"timestamp": 99}
    assert [r.arrives_at for r in load_trace(write(tmp_path / "t", LINE, later))] == [0.099, 1.5]


def test_only_full_blocks_of_the_prompt_have_names():
    request = TraceRequest(0.0, 1300, 7, (5, 9, 11))
    assert len(request.block_hashes(64)) == 1300 // 64
    assert len(request.block_hashes(512)) == 2


def test_equal_ids_give_equal_names_and_others_do_not():
    ours = TraceRequest(0.0, 1024, 7, (5, 9)).block_hashes(64)
    theirs = TraceRequest(0.0, 1024, 7, (5, 10)).block_hashes(64)
    assert ours[:8] == theirs[:8]
    assert not set(ours[8:]) & set(theirs[8:])
    assert len(set(ours)) == 16


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"input_length": 0}, "at least 1"),
        ({"output_length": 0}, "at least 1"),
        ({"hash_ids": [5]}, "1 hash_ids for 1300 tokens"),
        ({"input_length": "many"}, "input_length"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, change, complaint):
    path = write(tmp_path / "t.jsonl", LINE, LINE | change)
    with pytest.raises(ConfigError, match=rf"line 2: .*{complaint}"):
        load_trace(path)


def test_a_missing_or_empty_or_cut_file_is_an_error(tmp_path):
    empty = write(tmp_path / "empty")
    cut = tmp_path / "cut"
    cut.write_bytes(gzip.compress(b"x" * 1000)[:-9])
    for path, complaint in ((tmp_path / "none", "cannot read"), (empty, "no requests"), (cut, "cannot read")):
        with pytest.raises(ConfigError, match=complaint):
            load_trace(path)
