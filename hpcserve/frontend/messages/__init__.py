"""Anthropic's Messages API: its bodies, replies, events and errors. Generation itself is that of chat completions."""
