"""Configuration: models that people write, and how files, environment and flags become one `Config`."""

from hpcserve.config.load import LoadedConfig, load
from hpcserve.config.models import Config
from hpcserve.config.pools import PoolFlags
from hpcserve.config.settings import Setting

__all__ = ["Config", "LoadedConfig", "PoolFlags", "Setting", "load"]
