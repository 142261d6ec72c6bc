"""tabi.toml: `schema.py` has what may be in it, `check.py` what types do not say, `load.py` reads it."""

from tabi.config.check import check_values
from tabi.config.load import (
    PARTS,
    check_types,
    decode_special,
    encode_special,
    load_config,
    make_config,
    parse_config,
    remember,
)
from tabi.config.schema import (
    Clients,
    Config,
    Egress,
    Group,
    Guard,
    Limits,
    Listen,
    Log,
    Quotas,
    Rule,
    Seconds,
    Timeouts,
    Tls,
    Udp,
    User,
)
from tabi.policy.networks import Network

__all__ = [
    "PARTS",
    "Clients",
    "Config",
    "Egress",
    "Group",
    "Guard",
    "Limits",
    "Listen",
    "Log",
    "Network",
    "Quotas",
    "Rule",
    "Seconds",
    "Timeouts",
    "Tls",
    "Udp",
    "User",
    "check_types",
    "check_values",
    "decode_special",
    "encode_special",
    "load_config",
    "make_config",
    "parse_config",
    "remember",
]
