from pathlib import Path

import pytest

from hpcserve.engine.mock.timing import TimingModel
from hpcserve.engine.mock.timing_file import TimingFile, read_timing, write_timing
from hpcserve.errors import ConfigError


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "timing.json"
    written = TimingFile(
        prefill_ms=(1e-6, 0.02, 9), decode_ms=(-1, 30, 4), min_decode_ms=3.5, num_kv_blocks=100, block_size=32,
        provenance={"engine": "vllm", "prefill": [{"num_tokens": 1}]},
    )  # fmt: skip
    write_timing(file, written)
    assert read_timing(file) == written


def test_what_is_left_out_is_as_published(tmp_path: Path) -> None:
    file = tmp_path / "timing.json"
    file.write_text('{"decode_ms": [0, 0, 7]}')
    model = read_timing(file).model(1000, 2e9)
    assert model.prefill_s(512) == TimingModel().prefill_s(512)
    assert model.decode_s(0.5) == pytest.approx(0.007)
    assert model.transfer_s(10) == pytest.approx(5e-6)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"prefil_ms": [1, 2, 3]}', "prefil_ms"),
        ('{"block_size": 0}', "block_size"),
        ('{"prefill_ms": [0, -0.1, 50]}', "-50 ms for 1000 tokens"),
        ("{", "timing.json"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "timing.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_timing(file)


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write"):
        write_timing(tmp_path / "no" / "such.json", TimingFile())
