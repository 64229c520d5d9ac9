"""What a request asks of the engines besides text: parsing and structured output. Refused where they cannot do it."""

from __future__ import annotations

from hpcserve.errors import Unsupported
from hpcserve.frontend.admission import abilities
from hpcserve.frontend.context import Frontend
from hpcserve.frontend.prompts.conversation import template_variables
from hpcserve.frontend.schemas import ChatBody, GenerationBody
from hpcserve.types import ChatParsing


def check_structure(frontend: Frontend, body: GenerationBody) -> None:
    """Raise `Unsupported` for a text that has to look like something, where engines cannot see to it."""
    asks_by_format = body.response_format is not None and body.response_format.type != "text"
    if (asks_by_format or body.structured_outputs is not None) and "structured_output" not in abilities(frontend):
        name = "response_format" if asks_by_format else "structured_outputs"
        message = f"{name} is not supported: the engines of this deployment generate no structured output; leave it out"
        raise Unsupported(message, param=name)


def chat_parsing(frontend: Frontend, body: ChatBody) -> ChatParsing | None:
    """Return how the text of a chat is parsed; None where it is the answer as it is.

    Raises `Unsupported` for tools where no tool parser is set.
    """
    able, choice = abilities(frontend), body.choice_of_tools()
    if choice != "none" and "tools" not in able:
        raise Unsupported(
            "tools are not supported: this deployment has no tool parser; set model.tool_parser to the one of the"
            ' model\'s family, or send tool_choice "none"',
            param="tools",
        )
    if choice == "none" and "reasoning" not in able:
        return None
    return ChatParsing(
        streams=body.stream,
        tools=tuple(each.for_template() for each in body.tools or ()),
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls,
        include_reasoning=body.include_reasoning,
        template_kwargs=template_variables(body),
        num_earlier_tool_calls=sum(len(each.tool_calls or ()) for each in body.messages),
    )
