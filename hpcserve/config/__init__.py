"""Configuration: models that people write, and how files, environment and flags become one `Config`."""

from hpcserve.config.models import Config

__all__ = ["Config"]
