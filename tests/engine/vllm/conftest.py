"""Fixtures of the vLLM engine's tests."""

from tests.contract.models import tiny_model  # noqa: F401
