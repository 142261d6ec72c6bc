"""A configuration in Python, with plain numbers and with text that is read."""

from tabi.config import (
    Auth,
    Bandwidth,
    Ca,
    CheckConfig,
    Clients,
    Config,
    DistortConfig,
    EgressConfig,
    FaultConfig,
    Group,
    GuardConfig,
    HeadersConfig,
    InterceptConfig,
    LimitsConfig,
    LineConfig,
    Listen,
    Log,
    MemberConfig,
    Moment,
    PerClient,
    Prefer,
    Quota,
    Quotas,
    Rate,
    ResolverConfig,
    RuleConfig,
    Seconds,
    Share,
    Size,
    SshConfig,
    StickyConfig,
    Timeouts,
    Tls,
    Udp,
    UserConfig,
    UsersGrammar,
    load_config,
    make_config,
    parse_config,
)

NUMBERS = LimitsConfig(connections=10, bandwidth=1e6, burst=65536, max_session=3600, over="wait")
OF_EACH = LimitsConfig(per_client=PerClient(500, Share.parse("25%"), Rate.parse("50/s")))
WITH_UNITS = LimitsConfig(
    connect_rate=Rate.parse("20/s"),
    bandwidth=Bandwidth.parse("10 MB/s"),
    burst=Size.parse("64 KiB"),
    quota=Quota.parse("50 GB/month"),
    max_session=Seconds.parse("1 h"),
)
FIRST: Prefer = "ipv6"

CONFIG = Config(
    workers=1,
    listen=[Listen("mixed://127.0.0.1:0", udp=Udp(ports="shared"), tls=Tls("s.pem", "s.key", client_ca="c.pem"))],
    users={"alice": UserConfig("secret", plain=True, groups=["dev"], expires=1.8e9, limits=NUMBERS)},
    auth=Auth(users_file="users.jsonl"),
    groups={"dev": Group(limits=WITH_UNITS)},
    clients=[Clients(["10.0.0.0/8"], limits=NUMBERS)],
    limits=WITH_UNITS,
    rule=[RuleConfig("deny", name="no-mail", ports=[25, "465-587"]), RuleConfig(via="pool")],
    guard=GuardConfig(deny=["private"], allow=["10.20.0.0/16"]),
    quotas=Quotas(path="quotas.sqlite"),
    egress={
        "pool": EgressConfig(
            members=[MemberConfig("socks5://192.0.2.1:1080", weight=2), "http://192.0.2.2:3128"],
            balance="sticky",
            sticky=StickyConfig(by="user+session", ttl=600),
            check=CheckConfig(connect="example.com:443", every=10.0),
        ),
        "ssh": EgressConfig(url="ssh://192.0.2.3", ssh=SshConfig(known_hosts="known_hosts"), keepalive=60),
    },
    users_grammar=UsersGrammar(keys={"session": "session"}),
    resolver=ResolverConfig(servers=["tls://192.0.2.53"], timeout=2, prefer=FIRST, max_ttl=60.0),
    timeouts=Timeouts(idle=30.0, handshake=5, drain=Seconds.parse("30s")),
    log=Log(access="none", level="warning"),
    ca=Ca("ca.crt", "ca.key"),
    intercept=[
        InterceptConfig("pass", hosts=["*.bank.example"]),
        InterceptConfig(hosts=["*.example.com"], har="flows.har", body_limit=65536, hook_timeout=5, on_pinning="pass"),
    ],
    distort=[
        DistortConfig(hosts=["*.example.com"], fault="3g", probability=0.1),
        DistortConfig(fault=FaultConfig(latency=0.2, stall=0, up=LineConfig(bandwidth=1e6, limit=65536))),
        DistortConfig(headers=HeadersConfig(set={"User-Agent": "x"}, append={"X-A": ["1", "2"]})),
    ],
    profile={"train": FaultConfig(rtt=0.1, every="2 min good, 20 s gone", from_="22:00")},
)

EXPIRES: float = Moment.parse("2027-01-01")
IDLE: float = CONFIG.timeouts.idle
OTHERS: list[Config] = [load_config("tabi.toml"), parse_config("workers = 1"), make_config({"workers": 1})]
