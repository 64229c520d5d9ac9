"""Tells from a chat template whether it takes the content of messages as strings or as lists of parts.

A template that loops over a message's content expects parts, as vLLM has it (`vllm.renderers.hf`). The loop is looked
for in the syntax tree, through variables and parameters of macros, without regard to what is in scope where.
"""

from __future__ import annotations

from collections.abc import Iterator

from jinja2 import nodes

from hpcserve.frontend.schemas.messages import ContentFormat


def content_format_of(template: nodes.Template) -> ContentFormat:
    """Return the format for a parsed template."""
    messages = set(_message_names(template))
    in_macros = {}
    for macro in template.find_all(nodes.Macro):
        contents = _content_parameters(macro, list(template.find_all(nodes.Call)), messages)
        in_macros.update({id(loop): contents for loop in macro.find_all(nodes.For)})
    for loop in template.find_all(nodes.For):
        if _is_content(loop.iter, messages) or _name(loop.iter) in in_macros.get(id(loop), {"content"}):
            return "openai"
    return "string"


def _message_names(template: nodes.Template) -> Iterator[str]:
    """Yield the variables that hold one message: those of loops over all or some of them."""
    lists = {"messages"}
    assigns = list(template.find_all(nodes.Assign))
    while True:
        found = {name for each in assigns if _base(each.node) in lists and (name := _name(each.target)) is not None}
        if found <= lists:
            break
        lists |= found
    for loop in template.find_all(nodes.For):
        name = _name(loop.target)
        if _base(loop.iter) in lists and name is not None:
            yield name


def _content_parameters(macro: nodes.Macro, calls: list[nodes.Call], messages: set[str]) -> set[str]:
    """Return those parameters of a macro that are given a message's content somewhere."""
    names = [each.name for each in macro.args]
    contents = set()
    for call in calls:
        if _name(call.node) == macro.name:
            contents |= {name for name, given in zip(names, call.args, strict=False) if _is_content(given, messages)}
            contents |= {each.key for each in call.kwargs if _is_content(each.value, messages)}
    return contents


def _is_content(node: nodes.Node | None, messages: set[str]) -> bool:
    node = _unwrapped(node)
    if isinstance(node, nodes.Getattr):
        return node.attr == "content" and _name(node.node) in messages
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        return node.arg.value == "content" and _name(node.node) in messages
    return False


def _base(node: nodes.Node | None) -> str | None:
    return _name(_unwrapped(node))


def _unwrapped(node: nodes.Node | None) -> nodes.Node | None:
    """Return what filters, tests and slices are applied to."""
    while isinstance(node, nodes.Filter | nodes.Test) or (
        isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
    ):
        node = node.node
    return node


def _name(node: nodes.Node | None) -> str | None:
    return node.name if isinstance(node, nodes.Name) else None
