"""`vmcellar.yaml`: found, read with line numbers, validated, and explained when it is wrong."""

from vmcellar.config.load import find_config, load_config, parse_config
from vmcellar.config.model import Config

__all__ = ["Config", "find_config", "load_config", "parse_config"]
