"""The vLLM engine. Nothing here imports vLLM or PyTorch until an engine starts."""

from hpcserve.engine.vllm.engine import VllmEngine

__all__ = ["VllmEngine"]
