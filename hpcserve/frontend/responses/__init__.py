"""OpenAI's Responses API on top of what serves chat completions. Nothing is stored: requests bring their context."""
