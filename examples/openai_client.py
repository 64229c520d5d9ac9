"""Talks to a deployment with the openai package: a chat, a streamed chat, and text completions.

    python examples/openai_client.py --endpoint http://127.0.0.1:8000/v1 --key-file "$(hpcserve key --path)"

Without the options it reads OPENAI_BASE_URL and OPENAI_API_KEY, as the package itself does. There is no option for the
key itself: everybody on a login node can read command lines.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import openai

QUESTION = "Why do queues form?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", default=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"))
    parser.add_argument("--key-file", type=Path)
    args = parser.parse_args()
    key = args.key_file.read_text().strip() if args.key_file else os.environ.get("OPENAI_API_KEY", "none")
    with openai.OpenAI(base_url=args.endpoint, api_key=key) as client:  # the package insists on a key
        model = next(iter(client.models.list())).id
        print(f"model: {model}")
        chat(client, model)
        stream(client, model)
        complete(client, model)


def chat(client: openai.OpenAI, model: str) -> None:
    reply = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=32, temperature=0
    )
    print(f"chat: {reply.choices[0].message.content!r}")
    if reply.usage is not None:
        print(f"usage: {reply.usage.prompt_tokens} prompt tokens, {reply.usage.completion_tokens} generated")


def stream(client: openai.OpenAI, model: str) -> None:
    chunks = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=32,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    print("stream: ", end="")
    for chunk in chunks:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
        if chunk.usage is not None:  # the last chunk, without choices
            print(f"\nusage: {chunk.usage.completion_tokens} generated")


def complete(client: openai.OpenAI, model: str) -> None:
    """Two prompts in one request, two continuations of each."""
    reply = client.completions.create(model=model, prompt=["Once upon a time", "The end of"], n=2, max_tokens=16)
    for choice in reply.choices:
        print(f"completion {choice.index}: {choice.text!r} ({choice.finish_reason})")


if __name__ == "__main__":
    main()
