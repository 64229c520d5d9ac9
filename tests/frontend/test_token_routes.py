"""/tokenize and /detokenize: the ids that engines get, and the text of ids."""

from __future__ import annotations

import json
import threading

import pytest
from fake_backend import ready_status

from hpcserve.config.builtin_tokenizer import builtin_tokenizer_json
from hpcserve.config.models import ModelConfig
from hpcserve.frontend.prompts.tokenizer import Tokenizer

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT_IDS = [256, 258, *b"hi", 261, 259]


async def test_a_prompt_becomes_the_ids_that_an_engine_gets(server):
    status, answer = await server.post("/tokenize", {"model": "mock", "prompt": "hé"})
    assert status == 200
    assert answer == {"count": 3, "max_model_len": 1000, "tokens": list("hé".encode()), "token_strs": None}
    assert list(answer) == ["count", "max_model_len", "tokens", "token_strs"]  # vLLM's order
    await server.complete(prompt="hé")
    assert list(server.backend.requests[0].token_ids) == answer["tokens"]


async def test_a_conversation_becomes_the_ids_that_an_engine_gets(server):
    _, answer = await server.post("/tokenize", {"messages": MESSAGES})
    assert answer["tokens"] == CHAT_IDS
    assert answer["count"] == len(CHAT_IDS)
    await server.chat()
    assert list(server.backend.requests[0].token_ids) == CHAT_IDS
    _, answer = await server.post("/tokenize", {"messages": MESSAGES, "add_generation_prompt": False})
    assert answer["tokens"] == CHAT_IDS[:-1]


async def test_tokens_can_be_had_as_strings(server):
    _, answer = await server.post("/tokenize", {"messages": MESSAGES, "return_token_strs": True})
    assert len(answer["token_strs"]) == answer["count"]
    assert answer["token_strs"][0] == "<|bos|>"
    assert answer["token_strs"][-1] == "<|assistant|>"


async def test_special_tokens_are_added_to_prompts_and_not_to_conversations_unless_told(make_server, tmp_path):
    content = json.loads(builtin_tokenizer_json())
    bos = {"SpecialToken": {"id": "<|bos|>", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [256], "tokens": ["<|bos|>"]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}{{ mark }}")
    tokenizer = Tokenizer.load(ModelConfig(path=tmp_path))
    server = await make_server(own_tokenizer=tokenizer)

    async def ids(**body: object) -> list[int]:
        return (await server.post("/tokenize", body))[1]["tokens"]

    assert await ids(prompt="a") == [256, 97]
    assert await ids(prompt="a", add_special_tokens=False) == [97]
    assert await ids(messages=MESSAGES) == [*b"hi"]
    assert await ids(messages=MESSAGES, add_special_tokens=True) == [256, *b"hi"]
    assert await ids(messages=MESSAGES, chat_template_kwargs={"mark": "!"}) == [*b"hi!"]
    tokenizer.close()


async def test_ids_become_text_again(server):
    status, answer = await server.post("/detokenize", {"model": "mock", "tokens": CHAT_IDS})
    assert (status, answer) == (200, {"prompt": "<|bos|><|user|>hi<|end|><|assistant|>"})
    assert await server.post("/detokenize", {"tokens": []}) == (200, {"prompt": ""})
    assert (await server.post("/tokenize", {"prompt": ""}))[1]["tokens"] == []


async def test_prompts_beyond_the_context_can_be_counted(server):
    status, answer = await server.post("/tokenize", {"prompt": "x" * 5000})
    assert (status, answer["count"], answer["max_model_len"]) == (200, 5000, 1000)


async def test_long_input_is_handled_off_the_event_loop(server, tokenizer, monkeypatch):
    threads = []
    for name in ("_encode", "decode"):
        real = getattr(tokenizer, name)

        def spy(*args, real=real, **options):
            threads.append(threading.current_thread() is threading.main_thread())
            return real(*args, **options)

        monkeypatch.setattr(tokenizer, name, spy)
    long = "x" * 10_000
    assert (await server.post("/tokenize", {"prompt": long}))[1]["count"] == 10_000
    assert (await server.post("/tokenize", {"messages": [{"role": "user", "content": long}]}))[0] == 200
    assert (await server.post("/detokenize", {"tokens": [120] * 10_000}))[1]["prompt"] == long
    assert (await server.post("/tokenize", {"prompt": "x"}))[0] == 200
    assert (await server.post("/detokenize", {"tokens": [120]}))[0] == 200
    assert threads == [False, False, False, True, True]


WRONG = [
    ("/tokenize", {}, "prompt", "prompt or messages is required"),
    ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt", "not both"),
    ("/tokenize", {"prompt": ["a"]}, "prompt", "must be a string"),
    ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt", "unknown field"),
    ("/tokenize", {"prompt": "a", "return_token_str": True}, "return_token_str", "did you mean 'return_token_strs'"),
    ("/tokenize", {"messages": []}, "messages", "at least 1 item"),
    ("/tokenize", {"messages": MESSAGES, "tools": [{"type": "function"}]}, "tools[0].function", "is required"),
    ("/tokenize", {"messages": MESSAGES, "chat_template": "x"}, "chat_template", "not supported"),
    ("/detokenize", {}, "tokens", "tokens is required"),
    ("/detokenize", {"tokens": "abc"}, "tokens", "must be a list"),
    ("/detokenize", {"tokens": [-1]}, "tokens[0]", "at least 0"),
    ("/detokenize", {"tokens": [262]}, "tokens", "token id 262 is not in the vocabulary of 262"),
    ("/detokenize", {"tokens": [2**40]}, "tokens[0]", "at most"),
]


@pytest.mark.parametrize(("path", "body", "param", "part"), WRONG, ids=lambda value: str(value)[:40])
async def test_a_wrong_field_is_named_with_what_to_change(server, path, body, param, part):
    status, answer = await server.post(path, body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert part in answer["error"]["message"]


@pytest.mark.parametrize("body", [{"prompt": "a"}, {"messages": MESSAGES}, {"tokens": [1]}], ids=str)
async def test_another_model_is_not_found(server, body):
    status, answer = await server.post("/detokenize" if "tokens" in body else "/tokenize", {"model": "gpt-9", **body})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


async def test_without_a_worker_the_context_is_unknown_but_text_is_not(server):
    server.backend.now = ready_status(workers=())
    assert (await server.post("/tokenize", {"prompt": "a"}))[0] == 503
    assert await server.post("/detokenize", {"tokens": [97]}) == (200, {"prompt": "a"})
