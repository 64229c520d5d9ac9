"""hpcserve: a Slurm allocation as an LLM service. Start reading at `docs/architecture.md`."""

__version__ = "0.1.0"
