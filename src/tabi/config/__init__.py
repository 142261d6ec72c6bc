"""What tabi.toml may say, as structs: `Config` is the whole file. All names of ``__all__`` are public.

    config = tabi.Config(timeouts=Timeouts(idle=30.0), limits=LimitsConfig(connect_rate=Rate.parse("20/s")))
    config = load_config("tabi.toml")  # or parse_config(text), or make_config(a mapping)

`schema.py` has the structs, `check.py` what types do not say, `load.py` reads the file.
"""

from tabi.config.distort import DistortConfig, FaultConfig, HeadersConfig, LineConfig
from tabi.config.load import load_config, make_config, parse_config
from tabi.config.schema import (
    Auth,
    Ca,
    CheckConfig,
    Clients,
    Config,
    EgressConfig,
    Group,
    GuardConfig,
    InterceptConfig,
    LimitsConfig,
    Listen,
    Log,
    MemberConfig,
    PerClient,
    Prefer,
    Quotas,
    ResolverConfig,
    RuleConfig,
    SshConfig,
    StickyConfig,
    Timeouts,
    Tls,
    Udp,
    UserConfig,
    UsersGrammar,
)
from tabi.policy.quantities import Bandwidth, Moment, Quota, Rate, Seconds, Share, Size

__all__ = [
    "Auth",
    "Bandwidth",
    "Ca",
    "CheckConfig",
    "Clients",
    "Config",
    "DistortConfig",
    "EgressConfig",
    "FaultConfig",
    "Group",
    "GuardConfig",
    "HeadersConfig",
    "InterceptConfig",
    "LimitsConfig",
    "LineConfig",
    "Listen",
    "Log",
    "MemberConfig",
    "Moment",
    "PerClient",
    "Prefer",
    "Quota",
    "Quotas",
    "Rate",
    "ResolverConfig",
    "RuleConfig",
    "Seconds",
    "Share",
    "Size",
    "SshConfig",
    "StickyConfig",
    "Timeouts",
    "Tls",
    "Udp",
    "UserConfig",
    "UsersGrammar",
    "load_config",
    "make_config",
    "parse_config",
]
