"""Text and messages to token ids, with the model's own tokenizer and chat template.

Built on `tokenizers` alone: transformers' AutoTokenizer gives the same ids, but brings torch with it. It does not
detokenize what engines generate: text comes with their deltas.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Self, TypeVar

import tokenizers

from hpcserve.config.models import ModelConfig
from hpcserve.errors import BadRequest, ConfigError
from hpcserve.frontend.prompts import model_files
from hpcserve.frontend.prompts.chat_template import ChatTemplate
from hpcserve.frontend.prompts.conversation import Conversation
from hpcserve.frontend.prompts.word_cache import WordCache

T = TypeVar("T")
Side = Literal["left", "right"]

_INLINE_CHARS = 4096  # shorter texts take less time than a round trip to a thread
_THREADS = 2
_TEMPLATES = ("default", "tool_use")  # those that transformers chooses from by itself


class Tokenizer:
    """One model's vocabulary, chat template, and recommended sampling. Close it to end its threads."""

    def __init__(
        self,
        encoder: tokenizers.Tokenizer,
        chat_template: ChatTemplate | None,
        *,
        tool_template: ChatTemplate | None = None,
        vocab_size: int = 0,
        sampling_defaults: Mapping[str, float] | None = None,
    ) -> None:
        """`tool_template` is for conversations with tools, where the model has another one for those."""
        # Batches of one gain nothing from the library's own threads, which it would start here.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        encoder.no_truncation()
        encoder.no_padding()
        self._encoder = encoder
        self._words = WordCache.of(encoder)
        self._chat_template = chat_template
        self._tool_template = tool_template or chat_template
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tokenize")
        self.vocab_size = max(vocab_size, encoder.get_vocab_size(with_added_tokens=True))
        self.sampling_defaults = dict(sampling_defaults or {})

    @classmethod
    def load(cls, model: ModelConfig) -> Self:
        """Load from `model.path`, or the built-in one without a path. Raises `ConfigError` if files are missing."""
        if model.path is None:
            return cls._built_in(model)
        file = model.path / "tokenizer.json"
        if not file.is_file():
            raise ConfigError(
                f"{model.path} holds no tokenizer.json; give the directory of a model with a fast tokenizer",
                param="model.path",
            )
        source = _template_source(model)
        sources = {"default": source} if source else model_files.read_chat_templates(model.path)
        special_tokens = model_files.read_special_tokens(model.path)
        templates = {name: ChatTemplate(sources[name], special_tokens) for name in _TEMPLATES if name in sources}
        return cls(
            _parse(file.read_text(encoding="utf-8"), str(file)),
            templates.get("default"),
            tool_template=templates.get("tool_use"),
            vocab_size=model_files.read_vocab_size(model.path),
            sampling_defaults=model_files.read_sampling_defaults(model.path),
        )

    @classmethod
    def _built_in(cls, model: ModelConfig) -> Self:
        from hpcserve.config.builtin_tokenizer import BUILTIN_CHAT_TEMPLATE, builtin_tokenizer_json

        source = _template_source(model) or BUILTIN_CHAT_TEMPLATE
        return cls(_parse(builtin_tokenizer_json(), "the built-in tokenizer"), ChatTemplate(source, {}))

    async def encode_text(
        self, text: str, *, add_special_tokens: bool = True, limit: int | None = None, cut: Side = "left"
    ) -> list[int]:
        """Return the ids of a plain prompt; the special tokens are those that the tokenizer puts around any text.

        Over `limit` tokens, the text loses those on the side that is to be `cut`; the special tokens stay.
        """

        def encode() -> list[int]:
            token_ids = self._encode(text, add_special_tokens=add_special_tokens)
            if limit is None or len(token_ids) <= limit:
                return token_ids
            return self._encode_part(text, limit, add_special_tokens, cut)

        return await self._run(len(text), encode)

    async def encode_chat(self, conversation: Conversation) -> list[int]:
        """Return the ids of a conversation. Raises `BadRequest` if the template refuses it or there is none."""
        template = self._template_for(conversation)

        def render_and_encode() -> list[int]:
            return self._encode(conversation.render(template), add_special_tokens=conversation.add_special_tokens)

        return await self._run(conversation.num_chars, render_and_encode)

    def _template_for(self, conversation: Conversation) -> ChatTemplate:
        template = self._tool_template if conversation.tools else self._chat_template
        if template is None:
            raise BadRequest("the model has no chat template: set model.chat_template, or use /v1/completions")
        return template

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens included."""
        return str(self._encoder.decode(list(token_ids), skip_special_tokens=False))

    async def decode_text(self, token_ids: Sequence[int]) -> str:
        """Do as `decode`, without holding up the event loop."""
        return await self._run(len(token_ids), lambda: self.decode(token_ids))

    async def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """Return each token as the vocabulary has it, such as "Ġthe"; empty for ids that it leaves out."""
        return await self._run(len(token_ids), lambda: [self._encoder.id_to_token(each) or "" for each in token_ids])

    def close(self) -> None:
        """End the threads, without waiting for what they do."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if not add_special_tokens and self._words is not None and len(text) <= _INLINE_CHARS:
            token_ids = self._words.encode(text)
            if token_ids is not None:
                return token_ids
        # The fast form leaves out offsets, which halves the time.
        return list(self._encoder.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)

    def _encode_part(self, text: str, limit: int, add_special_tokens: bool, cut: Side) -> list[int]:
        num_special = self._encoder.num_special_tokens_to_add(False) if add_special_tokens else 0
        encoding = self._encoder.encode(text, add_special_tokens=False)
        encoding.truncate(max(0, limit - num_special), direction=cut)
        return list(self._encoder.post_process(encoding, None, add_special_tokens).ids)

    async def _run(self, num_chars: int, work: Callable[[], T]) -> T:
        if num_chars <= _INLINE_CHARS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _template_source(model: ModelConfig) -> str | None:
    if model.chat_template is None:
        return None
    try:
        return Path(model.chat_template).read_text(encoding="utf-8")
    except OSError as err:
        message = f"cannot read the chat template {model.chat_template}: {err.strerror}"
        raise ConfigError(message, param="model.chat_template") from err


def _parse(content: str, origin: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(content)
    except Exception as err:
        raise ConfigError(f"{origin} is not a tokenizer: {err}", param="model.path") from err
