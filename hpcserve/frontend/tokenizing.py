"""POST /tokenize and /detokenize: the frontend's own tokenizer for clients, with the fields of vLLM's server."""

from __future__ import annotations

import msgspec
from aiohttp import web

from hpcserve.errors import BadRequest
from hpcserve.frontend.admission import admit, check_model
from hpcserve.frontend.body import read_object
from hpcserve.frontend.context import FRONTEND, RECORD
from hpcserve.frontend.errors import json_response
from hpcserve.frontend.prompts.conversation import conversation_of
from hpcserve.frontend.prompts.tokenizer import Tokenizer
from hpcserve.frontend.replies import Detokenized, Tokenized
from hpcserve.frontend.schemas import TokenizeChatBody, TokenizeTextBody
from hpcserve.frontend.validation import parse_detokenize, parse_tokenize


async def tokenize(request: web.Request) -> web.Response:
    """Return the ids that a prompt or a conversation would be sent to an engine with, however long it is."""
    frontend = request.app[FRONTEND]
    body = parse_tokenize(await read_object(request))
    context = admit(frontend, _model(request, body.model))
    token_ids = await _encode(frontend.tokenizer, body)
    strings = await frontend.tokenizer.token_strings(token_ids) if body.return_token_strs else None
    reply = Tokenized(count=len(token_ids), max_model_len=context, tokens=token_ids, token_strs=strings)
    return json_response(msgspec.json.encode(reply))


async def detokenize(request: web.Request) -> web.Response:
    """Return the text of token ids, special tokens included. Needs no worker."""
    frontend = request.app[FRONTEND]
    body = parse_detokenize(await read_object(request))
    check_model(frontend, _model(request, body.model))
    largest, size = max(body.tokens, default=0), frontend.tokenizer.vocab_size
    if largest >= size:
        raise BadRequest(f"token id {largest} is not in the vocabulary of {size} tokens", param="tokens")
    text = await frontend.tokenizer.decode_text(body.tokens)
    return json_response(msgspec.json.encode(Detokenized(prompt=text)))


def _model(request: web.Request, asked: str | None) -> str:
    """Return the model that is meant. Raises `ModelNotFound` if the key is not good for it."""
    model = asked or request.app[FRONTEND].config.served_name
    request[RECORD].tenant.check_model(model)
    return model


async def _encode(tokenizer: Tokenizer, body: TokenizeTextBody | TokenizeChatBody) -> list[int]:
    if isinstance(body, TokenizeTextBody):
        return await tokenizer.encode_text(body.prompt, add_special_tokens=body.add_special_tokens)
    return await tokenizer.encode_chat(conversation_of(body))
