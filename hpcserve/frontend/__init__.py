"""The HTTP server: OpenAI's endpoints in front of a `Backend`. No routing logic, and neither vLLM nor torch in here.

Nothing is imported here: `up` and the head want an address checked, not the server.
"""
