"""Fixtures of the vLLM engine's tests."""

from tests.contract.models import marked_model, tiny_model  # noqa: F401
