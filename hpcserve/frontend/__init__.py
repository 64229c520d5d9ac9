"""The HTTP server: OpenAI's endpoints in front of a `Backend`. No routing logic, and neither vLLM nor torch in here.

`app` puts it together. `server/` listens, `access/` knows who asks and what they may, `prompts/` makes token ids. Each
kind of request has its package (`chat/`, `completions/`, `responses/`, `messages/`, `files/`, `batches/`) or module,
its bodies in `schemas/` and its answers in `replies/`. What they share lies here: `generation` runs choices,
`streaming` and `collecting` answer with them. `description/` is the API for programs and people, `page/` for browsers.

Nothing is imported here: `up` and the head want an address checked, not the server.
"""
