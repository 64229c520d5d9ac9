from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hpcserve.config.builtin_tokenizer import builtin_tokenizer_json
from hpcserve.config.models import ModelConfig
from hpcserve.errors import BadRequest, ConfigError
from hpcserve.frontend.prompts.chat_template import ChatTemplate
from hpcserve.frontend.prompts.conversation import Conversation
from hpcserve.frontend.prompts.tokenizer import Tokenizer
from hpcserve.frontend.schemas import ChatMessage

USER = [{"role": "user", "content": "hi"}]


def said(messages, **options) -> Conversation:
    return Conversation(messages=[ChatMessage(**each) for each in messages], **options)


def render(source: str, messages=USER, **options) -> str:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}).render(messages, **options)


def test_templates_see_the_special_tokens_and_whether_a_generation_follows():
    source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{% if add_generation_prompt %}A:{% endif %}"
    assert render(source) == "<s>hi</s>A:"
    assert render(source, add_generation_prompt=False) == "<s>hi</s>"


def test_templates_are_read_as_transformers_reads_them():
    assert render("{% for m in messages %}\n  {% break %}\n{% endfor %}\nx") == "x"
    assert render("{{ {'a': '<é>'} | tojson }}") == '{"a": "<é>"}'
    assert render("{{ {'a': 1} | tojson(indent=1) }}") == '{\n "a": 1\n}'
    assert render("{% generation %}{{ messages[0].content }}{% endgeneration %}!") == "hi!"
    assert len(render("{{ strftime_now('%Y') }}")) == 4
    assert render("{{ tools is none }}{{ thinking is defined }}", extra={"thinking": True}) == "TrueTrue"


def test_variables_of_the_request_do_not_replace_the_messages():
    assert render("{{ messages[0].content }}", extra={"messages": "x"}) == "hi"


@pytest.mark.parametrize(
    "source",
    ["{{ raise_exception('no') }}", "{{ undefined.x }}", "{{ 1 / 0 }}", "{{ messages[9].content }}", "{{ 1 + 'x' }}"],
)
def test_a_template_that_fails_is_the_requests_fault(source):
    with pytest.raises(BadRequest, match="chat template refuses"):
        render(source)


def test_a_template_cannot_reach_out_of_its_sandbox():
    with pytest.raises(BadRequest):
        render("{{ messages.__class__.__mro__ }}")
    with pytest.raises(BadRequest):
        render("{{ messages.append(1) }}")


def test_a_broken_template_is_a_config_error_with_the_line():
    with pytest.raises(ConfigError, match="line 2"):
        ChatTemplate("\n{% for %}", {})


async def test_the_built_in_tokenizer_needs_no_files(tokenizer):
    ids = await tokenizer.encode_chat(said(USER))
    assert ids == [256, 258, *b"hi", 261, 259]
    assert await tokenizer.encode_text("é") == list("é".encode())
    assert tokenizer.decode(ids[2:4]) == "hi"


async def test_long_prompts_are_tokenized_off_the_event_loop(tokenizer, monkeypatch):
    threads = []
    encode = tokenizer._encode

    def spy(text, *, add_special_tokens):
        threads.append(threading.current_thread() is threading.main_thread())
        return encode(text, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(tokenizer, "_encode", spy)
    assert len(await tokenizer.encode_text("x" * 100)) == 100
    assert len(await tokenizer.encode_text("x" * 10_000)) == 10_000
    assert len(await tokenizer.encode_chat(said([{"role": "user", "content": "x" * 10_000}]))) == 10_004
    assert threads == [True, False, False]


def model_dir(directory: Path, **files: object) -> ModelConfig:
    (directory / "tokenizer.json").write_text(builtin_tokenizer_json())
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return ModelConfig(path=directory)


async def test_the_template_and_special_tokens_come_from_the_models_directory(tmp_path):
    config = {"chat_template": "{{ bos_token }}{{ eos_token }}", "bos_token": {"content": "B"}, "eos_token": "E"}
    model = model_dir(tmp_path, tokenizer_config=config)
    assert await ids_of(model) == list(b"BE")
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    model = model_dir(tmp_path, tokenizer_config={"chat_template": named})
    assert await ids_of(model) == list(b"D")
    assert await ids_of(model, tools=[{"type": "function"}]) == list(b"T")
    (tmp_path / "chat_template.jinja").write_text("J")
    assert await ids_of(model) == list(b"J")
    (tmp_path / "own.jinja").write_text("O")
    assert await ids_of(model.model_copy(update={"chat_template": tmp_path / "own.jinja"})) == list(b"O")


async def test_a_model_without_a_template_serves_completions_only(tmp_path):
    tokenizer = Tokenizer.load(model_dir(tmp_path))
    with pytest.raises(BadRequest, match="no chat template"):
        await tokenizer.encode_chat(said(USER))
    assert await tokenizer.encode_text("x") == [120]
    tokenizer.close()


def test_recommended_sampling_and_vocabulary_are_read(tmp_path):
    model = model_dir(tmp_path, generation_config={"temperature": 0.6, "eos_token_id": 2}, config={"vocab_size": 300})
    tokenizer = Tokenizer.load(model)
    assert tokenizer.sampling_defaults == {"temperature": 0.6}
    assert tokenizer.vocab_size == 300
    tokenizer.close()


async def test_recommended_sampling_holds_unless_the_request_says_otherwise(tmp_path, make_server):
    model = model_dir(tmp_path, generation_config={"temperature": 0.6, "top_k": 20}, tokenizer_config={})
    tokenizer = Tokenizer.load(model)
    server = await make_server(own_tokenizer=tokenizer)
    await server.complete()
    await server.complete(temperature=0, top_k=-1)
    first, second = (request.sampling for request in server.backend.requests)
    assert (first.temperature, first.top_k) == (0.6, 20)
    assert (second.temperature, second.top_k) == (0.0, 0)
    tokenizer.close()


@pytest.mark.parametrize("content", [None, "not json", "{}"])
def test_a_directory_without_a_usable_tokenizer_is_a_config_error(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match="tokenizer"):
        Tokenizer.load(ModelConfig(path=tmp_path))


async def ids_of(model: ModelConfig, **options) -> list[int]:
    tokenizer = Tokenizer.load(model)
    try:
        return await tokenizer.encode_chat(said(USER, **options))
    finally:
        tokenizer.close()


def test_the_frontend_loads_neither_vllm_nor_torch_nor_transformers():
    script = (
        "import sys, hpcserve.frontend.app; from hpcserve.config.models import ModelConfig;"
        "from hpcserve.frontend.prompts.tokenizer import Tokenizer; Tokenizer.load(ModelConfig()).close();"
        "print([m for m in ('vllm', 'torch', 'transformers', 'distributed', 'dask', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout.strip() == "[]"


CONVERSATIONS = [
    USER,
    [{"role": "system", "content": "Be <brief>.\n"}, {"role": "user", "content": "  def f(x):\n\treturn x  "}],
    [*USER, {"role": "assistant", "content": "</s> é 日本 🎉"}, {"role": "user", "content": "x" * 6000}],
]

MAKE_MODEL = """
import pathlib, sys
from hpcserve.engine.tiny_model import make_tiny_model
make_tiny_model(pathlib.Path(sys.argv[1]))
"""

REFERENCE = """
import json, sys, transformers
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
chats = json.loads(sys.argv[2])
ids = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]
texts = [tokenizer(chat[0]["content"])["input_ids"] for chat in chats]
bare = [tokenizer(chat[0]["content"], add_special_tokens=False)["input_ids"] for chat in chats]
decoded = [tokenizer.decode(each) for each in ids]
print(json.dumps([ids, texts, bare, decoded, [tokenizer.convert_ids_to_tokens(each) for each in ids]]))
"""


@pytest.mark.real
@pytest.mark.timeout(180)
async def test_ids_texts_and_token_strings_equal_those_of_transformers(tmp_path):
    """In a subprocess: what is compared with must not be imported here."""
    directory = tmp_path / "tiny"
    subprocess.run([sys.executable, "-c", MAKE_MODEL, str(directory)], check=True, timeout=120)
    command = [sys.executable, "-c", REFERENCE, str(directory), json.dumps(CONVERSATIONS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    chats, texts, bare, decoded, strings = json.loads(done.stdout)
    tokenizer = Tokenizer.load(ModelConfig(path=directory))
    assert [await tokenizer.encode_chat(said(chat)) for chat in CONVERSATIONS] == chats
    openings = [chat[0]["content"] for chat in CONVERSATIONS]
    assert [await tokenizer.encode_text(each) for each in openings] == texts
    assert [await tokenizer.encode_text(each, add_special_tokens=False) for each in openings] == bare
    assert [await tokenizer.decode_text(each) for each in chats] == decoded
    assert [await tokenizer.token_strings(each) for each in chats] == strings
    tokenizer.close()
