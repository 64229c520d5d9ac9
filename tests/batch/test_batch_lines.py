"""What lines mean and what is wrong with them: one by one, and over a whole input."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from hpcserve.batch import OpenAILines, Prompts, open_source
from hpcserve.batch.check import check_input
from hpcserve.batch.lines import Item, Problem
from hpcserve.batch.text_lengths import counted_texts
from hpcserve.config import Config
from hpcserve.errors import ConfigError

MODELS = {"mock": 100}


def chat(custom_id: str = "a", **changes: Any) -> dict[str, Any]:
    body = {"model": "mock", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body | changes}


def check(tmp_path: Path, *lines: Any) -> str:
    """Return what is said about an input."""
    path = tmp_path / "in.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    with pytest.raises(ConfigError) as caught:
        check_input(open_source(path), OpenAILines(), MODELS)
    return caught.value.message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: is not valid JSON"),
        ("[]", "line 1: must be a JSON object"),
        (chat() | {"body": []}, "line 1: body must be an object"),
        ({"custom_id": "a"}, "line 1: method is missing"),
        (chat() | {"method": "GET"}, "line 1: method must be POST, got 'GET'"),
        (chat() | {"url": "/v1/chat/completion"}, "did you mean '/v1/chat/completions'"),
        (chat() | {"custom": 1}, "line 1: unknown field 'custom'; did you mean 'custom_id'?"),
        (chat() | {"custom_id": ""}, "custom_id must have 1 to 512 characters"),
        (chat(stream=True), "body.stream must be false"),
        (chat(temperature="hot"), "body: temperature must be a number"),
        (chat(tempurature=1), "body: unknown field 'tempurature'; did you mean 'temperature'?"),
        (chat(model="gpt"), "the model 'gpt' is not served; served: mock"),
        (chat(max_tokens=100), "too long: a prompt and 100 to generate are more than the context of 100 tokens"),
        ("\n\n", "the input has no requests"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(tmp_path: Path, line: Any, message: str) -> None:
    assert message in check(tmp_path, line)


def test_token_ids_that_do_not_fit_are_too_long(tmp_path: Path) -> None:
    line = chat() | {"url": "/v1/completions", "body": {"model": "mock", "prompt": [1] * 97, "max_tokens": 4}}
    assert "the prompt's 97 tokens and 4 to generate" in check(tmp_path, line)


def test_all_problems_are_listed_by_line_up_to_a_hundred(tmp_path: Path) -> None:
    said = check(tmp_path, chat("a"), "", "{", chat("b"), chat("a"), *(["?"] * 120)).splitlines()
    assert said[0].startswith("line 3: is not valid JSON")
    assert said[-2:] == ["and 22 more", "the input has 122 problems; nothing was sent"]
    assert len(said) == 102
    assert check(tmp_path, chat("a"), chat("b"), chat("a")).splitlines() == [
        "line 3: custom_id 'a' is that of line 1, too",
        "the input has 1 problem; nothing was sent",
    ]


def test_a_right_input_has_no_problems(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    others = [
        {"url": "/v1/completions", "body": {"model": "mock", "prompt": "x"}},
        {"url": "/v1/responses", "body": {"model": "mock", "input": "x"}},
        {"url": "/v1/embeddings", "body": {"model": "mock", "input": "x"}},
    ]
    lines = [chat("a"), *({"custom_id": str(i), "method": "POST"} | each for i, each in enumerate(others))]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, lines)).encode())
    checked = check_input(open_source(path), OpenAILines(), MODELS)
    assert (checked.num_requests, checked.fingerprint.num_lines) == (4, 4)


def test_checking_many_lines_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(chat(f"request-{number}")) + "\n" for number in range(10_000)))
    tracemalloc.start()
    try:
        check_input(open_source(path), OpenAILines(), MODELS)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 4 * 2**20, "1 MiB of buffer, and 20 bytes a line"


def test_prompts_become_chats() -> None:
    reader = Prompts("mock", {"max_tokens": 3}, system="Be brief.")
    item = reader.read(7, "Grüße".encode())
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße"}]
    assert item == Item(7, "line-7", "/v1/chat/completions", {"model": "mock", "max_tokens": 3, "messages": messages})
    assert reader.read(8, b"  ") is None
    assert isinstance(reader.read(9, b"\xff"), Problem)


def test_parquet_rows_become_chats(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "in.parquet"
    table = pyarrow.table({"text": [f"number {i}" for i in range(3000)] + [None], "key": range(3001)})
    parquet.write_table(table, path, row_group_size=1000)
    reader = Prompts("mock", {}, noun="row", is_text=False)
    rows = list(open_source(path, prompt_column="text", id_column="key"))
    first, last = reader.read(1, rows[0]), reader.read(3001, rows[3000])
    assert isinstance(first, Item)
    assert (first.custom_id, first.body["messages"][0]["content"]) == ("0", "number 0")
    assert last == Problem(3001, "has no prompt: 'None'")
    without_ids = reader.read(5, next(iter(open_source(path, prompt_column="text"))))
    assert isinstance(without_ids, Item)
    assert without_ids.custom_id == "row-5"
    with pytest.raises(ConfigError, match="no column 'prompt'; it has text, key"):
        open_source(path)


def test_a_file_that_is_not_there_or_no_parquet_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        open_source(tmp_path / "none.jsonl")
    (tmp_path / "in.jsonl").touch()
    (tmp_path / "in.parquet").touch()
    with pytest.raises(ConfigError, match="columns are of Parquet files"):
        open_source(tmp_path / "in.jsonl", prompt_column="x")
    with pytest.raises(ConfigError, match=r"cannot read .* as Parquet"):
        open_source(tmp_path / "in.parquet")


def test_a_text_that_is_too_long_is_found_and_one_that_only_looks_so_is_not(tmp_path: Path) -> None:
    config = Config.model_validate({"engine": {"kind": "mock"}})
    path = tmp_path / "in.jsonl"
    fits, too_long = chat("a"), chat("b")
    fits["body"] = {"model": "mock", "messages": [{"role": "user", "content": "hello " * 300}], "max_tokens": 5}
    too_long["body"] = fits["body"] | {"messages": [{"role": "user", "content": "hello " * 3000}]}
    models = {"mock": 2500}
    with counted_texts(config, models) as lengths:
        path.write_text(json.dumps(fits) + "\n")
        assert check_input(open_source(path), OpenAILines(), models, lengths).num_requests == 1
        path.write_text(json.dumps(fits) + "\n" + json.dumps(too_long) + "\n")
        with pytest.raises(ConfigError, match=r"line 2: body: too long: .*2500"):
            check_input(open_source(path), OpenAILines(), models, lengths)


def test_texts_are_not_counted_where_the_model_is_not_known() -> None:
    with counted_texts(None, {"mock": 10}) as lengths:
        assert lengths is None
