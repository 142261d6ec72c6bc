"""What tabi.toml may say, as structs: `Config` is the whole file. All names of ``__all__`` are public.

    config = tabi.Config(timeouts=Timeouts(idle=30.0), limits=Limits(connect_rate=Rate.parse("20/s")))
    config = load_config("tabi.toml")  # or parse_config(text), or make_config(a mapping)

`schema.py` has the structs, `check.py` what types do not say, `load.py` reads the file.
"""

from tabi.config.load import load_config, make_config, parse_config
from tabi.config.schema import (
    Auth,
    Check,
    Clients,
    Config,
    Egress,
    Group,
    Guard,
    Limits,
    Listen,
    Log,
    Member,
    Prefer,
    Quotas,
    Resolver,
    Rule,
    Ssh,
    Sticky,
    Timeouts,
    Tls,
    Udp,
    User,
    UsersGrammar,
)
from tabi.policy.quantities import Bandwidth, Moment, Quota, Rate, Seconds, Size

__all__ = [
    "Auth",
    "Bandwidth",
    "Check",
    "Clients",
    "Config",
    "Egress",
    "Group",
    "Guard",
    "Limits",
    "Listen",
    "Log",
    "Member",
    "Moment",
    "Prefer",
    "Quota",
    "Quotas",
    "Rate",
    "Resolver",
    "Rule",
    "Seconds",
    "Size",
    "Ssh",
    "Sticky",
    "Timeouts",
    "Tls",
    "Udp",
    "User",
    "UsersGrammar",
    "load_config",
    "make_config",
    "parse_config",
]
