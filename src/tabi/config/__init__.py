"""tabi.toml: `schema.py` has what may be in it, `check.py` what types do not say, `load.py` reads it."""

from tabi.config.check import check_values
from tabi.config.load import PARTS, check_types, decode_special, load_config, make_config, parse_config
from tabi.config.schema import (
    Config,
    Egress,
    Listen,
    Log,
    Network,
    Seconds,
    Timeouts,
    Tls,
    Udp,
    User,
)

__all__ = [
    "PARTS",
    "Config",
    "Egress",
    "Listen",
    "Log",
    "Network",
    "Seconds",
    "Timeouts",
    "Tls",
    "Udp",
    "User",
    "check_types",
    "check_values",
    "decode_special",
    "load_config",
    "make_config",
    "parse_config",
]
