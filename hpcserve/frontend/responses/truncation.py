"""`truncation: "auto"`: a conversation that is too long loses its oldest turns, and stays a whole conversation."""

from __future__ import annotations

from hpcserve.frontend.admission import admit
from hpcserve.frontend.context import Frontend
from hpcserve.frontend.prompts.conversation import conversation_of
from hpcserve.frontend.schemas import ChatBody, ChatMessage

_ROOM_SHARE = 8  # without a limit of its own, an answer gets at least this part of the context


async def shortened(frontend: Frontend, chat: ChatBody) -> ChatBody:
    """Return `chat` without as many of its oldest turns as it takes for prompt and answer to fit.

    Instructions at its beginning stay, and so does the last turn: whether that fits is checked with the job.
    """
    context = admit(frontend, chat.model, needs="generate")
    limit = context - (chat.max_tokens or context // _ROOM_SHARE)
    choices = without_oldest_turns(chat.messages)
    fewest, most = 0, len(choices) - 1  # turns to leave out
    while fewest < most:
        middle = (fewest + most) // 2 if fewest else 0  # most conversations fit: they are looked at once
        shorter = chat.model_copy(update={"messages": choices[middle]})
        if len(await frontend.tokenizer.encode_chat(conversation_of(shorter))) <= limit:
            most = middle
        else:
            fewest = middle + 1
    return chat.model_copy(update={"messages": choices[fewest]})


def without_oldest_turns(messages: list[ChatMessage]) -> list[list[ChatMessage]]:
    """Return the conversation without its first 0, 1, 2… turns. A turn begins with what a user says."""
    num_kept = next((i for i, each in enumerate(messages) if each.role not in ("system", "developer")), len(messages))
    head = messages[:num_kept]
    begins = [i for i in range(num_kept + 1, len(messages)) if _begins_turn(messages, i)]
    return [messages, *(head + messages[i:] for i in begins)]


def _begins_turn(messages: list[ChatMessage], index: int) -> bool:
    return messages[index].role == "user" and messages[index - 1].role != "user"
