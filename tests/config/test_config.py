"""tabi.toml: every key, and for every mistake a message that names the key and tells no secret."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.pretty import pretty_repr

from tabi.config import (
    Auth,
    Ca,
    CheckConfig,
    Clients,
    Config,
    EgressConfig,
    FaultConfig,
    Group,
    GuardConfig,
    InterceptConfig,
    LimitsConfig,
    Listen,
    Log,
    MemberConfig,
    PerClient,
    Quotas,
    ResolverConfig,
    RuleConfig,
    Seconds,
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
from tabi.config.admin import Admin, AdminTls
from tabi.config.compile import make_hosts, make_rules
from tabi.config.load import PARTS, decode_special
from tabi.errors import ConfigError
from tabi.policy.quantities import Bandwidth, Idle, Moment, Quota, Rate, Share, Size
from tabi.policy.users import make_hash, plain_secret
from tabi.url import EXPECTED, LISTENER_PROTOCOLS, parse_url
from tabi.wire.address import parse_host

NO_HASH = "expected $scrypt$ln=…,r=…,p=…$SALT$KEY as `tabi passwd` prints it"
HASH = make_hash(b"sekret", b"salt")

TOP = (
    "workers, user, listen, users, auth, groups, clients, limits, rule, decide, guard, quotas, egress, users_grammar, "
    "resolver, timeouts, log, ca, intercept, admin, distort, profile, include"
)
PER_CLIENT = "connections, unauthenticated, connect_rate"
A_SHARE = 'expected a number of 1 to 1000000, or a share such as "25%"'
USER = "password, plain, groups, expires, limits"
EGRESS = (
    "send_proxy_protocol, source, source_by, interface, mark, keepalive, user_timeout, fast_open, url, chain, ca, "
    "ssh, resolve, isolate, members, balance, sticky, check"
)
SOME = "client, user, host, session"
LIMITS = "connections, connect_rate, bandwidth, burst, quota, max_session, over, per_client"
BANDWIDTH = (
    "groups.dev.limits.bandwidth: '10' is not a bandwidth, "
    'expected octets per second such as 1000000 or text such as "10 MB/s"'
)
RULE = "action, name, hosts, ports, users, clients, commands, listeners, protocols, hours, via, idle, sniff"
RULE += ", hosts_file, networks_file"

EVERYTHING = f"""
workers = 4
decide = "python:policy:decide"
limits = {{ connections = 5000, per_client = {{ connections = 7, unauthenticated = "12.5%", connect_rate = "9/s" }} }}

[[listen]]
url = "socks5://127.0.0.1:0"
users = "required"
no_user = ["10.1.0.0/16", "unix"]
keepalive = "1 min"

[[listen]]
url = "mixed://[::1]"
users = "none"
proxy_protocol = ["10.0.0.0/8", "2001:db8::/32", "192.0.2.7", "unix"]
resolve_commands = true
sniff = true

[listen.tls]
certificate = "/etc/tabi/certificate.pem"
key = "/etc/tabi/key.pem"
client_ca = "/etc/tabi/clients.pem"
client_name = "email"
ciphers = "ECDHE-ECDSA-AES128-GCM-SHA256"

[listen.udp]
advertise = "192.0.2.1"
ports = "40000-40999"
fragments = "drop"
senders = "any"

[users.alice]
password = "{HASH}"
groups = ["dev"]
expires = 2027-01-01

[users.alice.limits]
connections = 100
connect_rate = "20/s"
bandwidth = "10 MB/s"
burst = "1 MB"
quota = "50 GB/month"
max_session = "8 h"
over = "wait"

[users."jürgen m."]
password = "sekret"
plain = true

[auth]
users_file = "/etc/tabi/users.jsonl"

[groups.dev]
limits = {{ connections = 1000 }}

[[clients]]
networks = ["10.0.0.0/8"]
limits = {{ bandwidth = "1 GB/s" }}

[[rule]]
name = "work"
action = "allow"
hosts = ["*.example.com", "re:^img[0-9]+", "198.51.100.0/24"]
ports = [443, "8000-8999"]
users = ["alice", "@dev"]
clients = ["10.0.0.0/8", "unix"]
commands = ["connect", "bind"]
listeners = ["mixed://[::1]"]
protocols = ["socks5", "https"]
hours = "Mon-Fri 08:00-18:00 Europe/Berlin"
idle = "never"
hosts_file = "/etc/tabi/hosts"
networks_file = ["/etc/tabi/networks", "/etc/tabi/more"]
via = "direct"

[[rule]]
action = "deny"

[guard]
deny = ["private", "192.0.2.0/24"]
allow = ["10.20.0.0/16"]
exempt = ["127.0.0.1"]

[quotas]
path = "/var/lib/tabi/quotas.sqlite"

[egress.direct]
send_proxy_protocol = 2
source = ["192.0.2.7", "2001:db8:1::/64"]
source_by = "user"
interface = "eth1"
mark = 7
keepalive = "1 min"
user_timeout = 30
fast_open = true

[egress.far]
url = "socks5+tls://gate.example"
ca = "/etc/tabi/authorities.pem"
resolve = "here"
isolate = ["user", "session"]

[egress.chain]
chain = ["far", "http://10.0.0.7:3128"]

[egress.pool]
balance = "sticky"
members = [
    "chain",
    {{ to = "socks5://user:password@10.1.1.1:1080", weight = 2.5, labels = ["de", "berlin"] }},
]

[egress.pool.sticky]
by = "user+session"
ttl = "10 min"

[egress.pool.check]
connect = "example.com:443"
every = 30
timeout = "2 s"

[egress.web]
members = ["chain"]
check = {{ http = "http://example.com/health" }}

[egress.jump]
url = "ssh://alice@gate.example"
ssh = {{ known_hosts = "/etc/tabi/known_hosts", key = "/etc/tabi/id_ed25519", agent = false }}

[users_grammar]
separator = "+"
keys = {{ country = "label", session = "session", ttl = "ttl" }}

[resolver]
servers = ["system", "192.0.2.53", "tls://dns.example", "https://dns.example/dns-query"]
ca = "/etc/tabi/dns-ca.pem"
timeout = "500ms"
tries = 3
prefer = "ipv4"
hosts = {{ "db.internal" = ["10.0.0.9", "fd00::9"] }}
cache = 500
min_ttl = 10
max_ttl = "1 d"
negative_ttl = 30

[timeouts]
handshake = 5
connect = "2.5 s"
idle = "5 min"
half_closed = "500ms"
bind = "1 min"
udp_idle = 7
drain = 0.5

[log]
access = "/var/log/tabi/access.log"
level = "debug"
format = "logfmt"
begin = true

[ca]
certificate = "/etc/tabi/ca.crt"
key = "/etc/tabi/ca.key"

[admin]
listen = "127.0.0.1:9180"
token = "0123456789abcdef"  # in place of it: token_file = "/etc/tabi/token"
read_token_file = "/etc/tabi/read-token"  # in place of it: read_token = "fedcba9876543210"
tls = {{ certificate = "/etc/tabi/admin.crt", key = "/etc/tabi/admin.key" }}
hosts = ["tabi.example"]

[[intercept]]
action = "pass"
name = "banks"
hosts_file = ["/etc/tabi/banks"]
networks_file = "/etc/tabi/networks"
hosts = ["*.bank.example"]

[[intercept]]
hosts = ["*.example.com", "198.51.100.0/24"]
ports = [443, "8000-8999"]
users = ["alice", "@dev"]
clients = ["10.0.0.0/8", "unix"]
commands = ["connect", "associate"]
listeners = ["mixed://[::1]"]
protocols = ["socks5", "https"]
hours = "Mon-Fri 08:00-18:00 Europe/Berlin"
tls = false
verify = false
trust = "/etc/tabi/private-ca.pem"
certificate = "/etc/tabi/client.crt"
key = "/etc/tabi/client.key"
on_pinning = "pass"
on_invalid = "alert"
on_error = "close"
mismatch = "deny"
quic = "refuse"
strip_alt_svc = true
har = "/var/log/tabi/flows.har"
body_limit = "64 KiB"
secrets = true
mask = ["X-Api-Key"]
scripts = ["/etc/tabi/hooks.py"]
hook_timeout = "5 s"
print = true
"""


# --- what can be said ---


def test_every_key() -> None:
    """All that the file can say today, and what becomes of it."""
    config = parse_config(EVERYTHING)
    assert config == Config(
        workers=4,
        listen=[
            Listen("socks5://127.0.0.1:0", "required", no_user=["10.1.0.0/16", "unix"], keepalive=Seconds(60)),
            Listen(
                "mixed://[::1]",
                "none",
                Udp("192.0.2.1", "40000-40999", "drop", "any"),
                Tls(
                    "/etc/tabi/certificate.pem",
                    "/etc/tabi/key.pem",
                    "/etc/tabi/clients.pem",
                    "email",
                    "ECDHE-ECDSA-AES128-GCM-SHA256",
                ),
                ["10.0.0.0/8", "2001:db8::/32", "192.0.2.7", "unix"],
                resolve_commands=True,
                sniff=True,
            ),
        ],
        auth=Auth("/etc/tabi/users.jsonl"),
        users={
            "alice": UserConfig(
                HASH,
                groups=["dev"],
                expires=Moment.parse(date(2027, 1, 1)),
                limits=LimitsConfig(
                    connections=100,
                    connect_rate=Rate.parse("20/s"),
                    bandwidth=Bandwidth.parse("10 MB/s"),
                    burst=Size.parse("1 MB"),
                    quota=Quota.parse("50 GB/month"),
                    max_session=Seconds(8 * 3600),
                    over="wait",
                ),
            ),
            "jürgen m.": UserConfig("sekret", plain=True),
        },
        groups={"dev": Group(LimitsConfig(connections=1000))},
        clients=[Clients(["10.0.0.0/8"], LimitsConfig(bandwidth=Bandwidth.parse("1 GB/s")))],
        limits=LimitsConfig(
            connections=5000, per_client=PerClient(7, Share.parse("12.5%"), connect_rate=Rate.parse("9/s"))
        ),
        rule=[
            RuleConfig(
                "allow",
                "work",
                ["*.example.com", "re:^img[0-9]+", "198.51.100.0/24"],
                [443, "8000-8999"],
                ["alice", "@dev"],
                ["10.0.0.0/8", "unix"],
                ["connect", "bind"],
                ["mixed://[::1]"],
                ["socks5", "https"],
                "Mon-Fri 08:00-18:00 Europe/Berlin",
                "direct",
                Idle.parse("never"),
                hosts_file="/etc/tabi/hosts",
                networks_file=["/etc/tabi/networks", "/etc/tabi/more"],
            ),
            RuleConfig("deny"),
        ],
        decide="python:policy:decide",
        guard=GuardConfig(["private", "192.0.2.0/24"], ["10.20.0.0/16"], ["127.0.0.1"]),
        quotas=Quotas("/var/lib/tabi/quotas.sqlite"),
        egress={
            "direct": EgressConfig(
                2, ["192.0.2.7", "2001:db8:1::/64"], "user", "eth1", 7, Seconds(60), Seconds(30), fast_open=True
            ),
            "far": EgressConfig(
                url="socks5+tls://gate.example",
                ca="/etc/tabi/authorities.pem",
                resolve="here",
                isolate=["user", "session"],
            ),
            "chain": EgressConfig(chain=["far", "http://10.0.0.7:3128"]),
            "pool": EgressConfig(
                members=["chain", MemberConfig("socks5://user:password@10.1.1.1:1080", 2.5, ["de", "berlin"])],
                balance="sticky",
                sticky=StickyConfig("user+session", Seconds(600)),
                check=CheckConfig("example.com:443", None, Seconds(30), Seconds(2)),
            ),
            "web": EgressConfig(members=["chain"], check=CheckConfig(http="http://example.com/health")),
            "jump": EgressConfig(
                url="ssh://alice@gate.example", ssh=SshConfig("/etc/tabi/known_hosts", "/etc/tabi/id_ed25519", False)
            ),
        },
        users_grammar=UsersGrammar({"country": "label", "session": "session", "ttl": "ttl"}, "+"),
        resolver=ResolverConfig(
            ["system", "192.0.2.53", "tls://dns.example", "https://dns.example/dns-query"],
            "/etc/tabi/dns-ca.pem",
            Seconds(0.5),
            3,
            "ipv4",
            {"db.internal": ["10.0.0.9", "fd00::9"]},
            500,
            Seconds(10),
            Seconds(86400),
            Seconds(30),
        ),
        timeouts=Timeouts(Seconds(5), Seconds(2.5), Seconds(300), Seconds(0.5), Seconds(60), Seconds(7), Seconds(0.5)),
        log=Log("/var/log/tabi/access.log", "debug", "logfmt", True),
        ca=Ca("/etc/tabi/ca.crt", "/etc/tabi/ca.key"),
        admin=Admin(
            "127.0.0.1:9180",
            "0123456789abcdef",
            read_token_file="/etc/tabi/read-token",
            tls=AdminTls("/etc/tabi/admin.crt", "/etc/tabi/admin.key"),
            hosts=["tabi.example"],
        ),
        intercept=[
            InterceptConfig(
                "pass",
                "banks",
                ["*.bank.example"],
                hosts_file=["/etc/tabi/banks"],
                networks_file="/etc/tabi/networks",
            ),
            InterceptConfig(
                "intercept",
                None,
                ["*.example.com", "198.51.100.0/24"],
                [443, "8000-8999"],
                ["alice", "@dev"],
                ["10.0.0.0/8", "unix"],
                ["connect", "associate"],
                ["mixed://[::1]"],
                ["socks5", "https"],
                "Mon-Fri 08:00-18:00 Europe/Berlin",
                tls=False,
                verify=False,
                trust="/etc/tabi/private-ca.pem",
                certificate="/etc/tabi/client.crt",
                key="/etc/tabi/client.key",
                on_pinning="pass",
                on_invalid="alert",
                on_error="close",
                mismatch="deny",
                quic="refuse",
                strip_alt_svc=True,
                har="/var/log/tabi/flows.har",
                body_limit=Size.parse("64 KiB"),
                secrets=True,
                mask=["X-Api-Key"],
                scripts=["/etc/tabi/hooks.py"],
                hook_timeout=Seconds(5),
                print=True,
            ),
        ],
    )
    assert [str(listen.parsed) for listen in config.listen] == ["socks5://127.0.0.1:0", "mixed://[::1]:1080"]
    assert [network and str(network) for network in config.listen[1].proxies] == [
        *("10.0.0.0/8", "2001:db8::/32", "192.0.2.7/32"),
        None,
    ]
    alice = config.users["alice"].secret
    assert alice is not None
    assert alice.is_hash
    assert config.users["jürgen m."].secret == plain_secret("sekret")


def test_the_test_above_leaves_no_key_out() -> None:
    """A key that is added to the schema is added there too; tests/config/test_distort.py does this for faults."""
    for name, part in PARTS.items():
        for key in part.__struct_fields__ if part.__module__ != FaultConfig.__module__ else ():
            if part is not Config or key in ("workers", "decide", "limits"):
                said = rf"(^|[{{ ]){key} = |^\[(listen|users\.alice|egress\.pool)\.{key}\]$"
                assert re.search(said, EVERYTHING, re.MULTILINE), f"{name}.{key}"


def test_an_empty_file_is_the_defaults() -> None:
    """Loopback without users, and the deadlines that the documentation states."""
    config = parse_config("")
    assert config == Config() == make_config({})
    assert config.workers == 1
    assert [str(listen.parsed) for listen in config.listen] == ["mixed://127.0.0.1:1080"]
    assert config.listen[0].users is None
    assert (config.listen[0].tls, config.listen[0].proxies) == (None, ())
    assert config.users == {}
    assert config.egress == {}
    assert config.timeouts == Timeouts(
        Seconds(10), Seconds(10), Seconds(300), Seconds(60), Seconds(120), Seconds(120), Seconds(30)
    )
    assert (config.log.access, config.log.level) == ("stdout", "info")


def test_a_rule_with_a_way_out_allows() -> None:
    """``via`` says enough; a rule without one has to say what it does."""
    config = parse_config("[[rule]]\nvia = 'direct'\n[[rule]]\naction = 'deny'")
    assert [(rule.action, rule.via) for rule in make_rules(config)] == [("allow", "direct"), ("deny", None)]
    with pytest.raises(ConfigError, match=r"^rule\[0\]\.action: missing$"):
        make_config({"rule": [{"ports": [1]}]})


def test_a_refusal_is_not_sniffed() -> None:
    """Nothing is sent that could be looked at."""
    with pytest.raises(ConfigError, match=r"^rule\[0\].sniff: nothing to look at, since it is not allowed"):
        parse_config("[[rule]]\naction = 'deny'\nsniff = true")


def test_a_refusal_has_no_idle_time() -> None:
    """Nothing runs that could be idle."""
    with pytest.raises(ConfigError, match=r"^rule\[0\].idle: a time for what is not allowed: action is deny"):
        parse_config("[[rule]]\naction = 'deny'\nidle = 5")


LISTEN_KEYS = "url, users, udp, tls, proxy_protocol, no_user, keepalive, resolve_commands, sniff"


@pytest.mark.parametrize("users", ["required", "optional", "none"])
def test_users_of_a_listener(users: str) -> None:
    """The three words of a listener."""
    text = f'[[listen]]\nusers = "{users}"\n[users.a]\npassword = "x"\nplain = true'
    assert parse_config(text).listen[0].users == users


def test_clients_may_be_users_by_their_certificate_alone() -> None:
    """A listener that asks for certificates can require users without one in the file."""
    tls = {"certificate": "c", "key": "k", "client_ca": "a"}
    listen = make_config({"listen": [{"users": "required", "tls": tls}]}).listen[0]
    assert listen.tls == Tls("c", "k", "a", "cn")


@pytest.mark.parametrize("port", [0, 1])
def test_listeners_at_different_places(port: int) -> None:
    """One host is another's neighbour, a port 0 is never the same, and a path is no name."""
    urls = [f"mixed://127.0.0.1:{port}", f"mixed://127.0.0.2:{port}", "unix:///a", "unix:///b", "fd://a", "fd://"]
    urls += ["mixed://127.0.0.1:0"] * 2
    assert [listen.url for listen in make_config({"listen": [{"url": url} for url in urls]}).listen] == urls


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_levels(level: str) -> None:
    """The four levels of messages."""
    assert parse_config(f'[log]\nlevel = "{level}"').log.level == level


@pytest.mark.parametrize("form", ["auto", "json", "text", "logfmt"])
def test_formats(form: str) -> None:
    """The formats of the access log, and whether it has beginnings; neither is there if nobody asks."""
    settings = parse_config(f'[log]\nformat = "{form}"\nbegin = true').log
    assert (settings.format, settings.begin) == (form, True)
    assert (Config().log.format, Config().log.begin) == ("auto", False)


@pytest.mark.parametrize("place", ["syslog", "journald", "syslog://loghost", "syslog://[::1]:1514", "a:b.log"])
def test_places_of_the_access_log(place: str) -> None:
    """Words, a URL, or a path."""
    assert parse_config(f'[log]\naccess = "{place}"').log.access == place


@pytest.mark.parametrize("workers", [0, 1, 1024])
def test_workers(workers: int) -> None:
    """0 is one for each CPU."""
    assert parse_config(f"workers = {workers}").workers == workers


@pytest.mark.parametrize("text", ["[[listen]]", "[[listen]]\nudp = {}", "[[listen]]\n[listen.udp]"])
def test_datagrams_by_default(text: str) -> None:
    """Any free port for each association, this machine's own address, fragments put together, no strangers."""
    udp = parse_config(text).listen[0].udp
    assert udp == Udp() == Udp(None, None, "reassemble", "contacted")
    assert (udp.address, udp.port_range, udp.shared) == (None, None, False)


def test_a_table_of_datagrams_belongs_to_the_listener_above_it() -> None:
    """Inline or as a table of its own it is the same."""
    config = parse_config("""
        [[listen]]
        url = "socks5://127.0.0.1:1"
        udp = {ports = "1-2", senders = "any"}
        [[listen]]
        url = "socks5://127.0.0.1:2"
        [listen.udp]
        fragments = "drop"
        [[listen]]
        url = "socks5://127.0.0.1:3"
    """)
    assert [listen.udp for listen in config.listen] == [
        Udp(ports="1-2", senders="any"),
        Udp(fragments="drop"),
        Udp(),
    ]


@pytest.mark.parametrize(
    ("ports", "found"),
    [
        ("1-65535", range(1, 65536)),
        ("40000-40000", range(40000, 40001)),
        ("00080-00081", range(80, 82)),
        ("shared", None),
        (None, None),
    ],
)
def test_ports_of_datagrams(ports: str | None, found: range | None) -> None:
    """Both ends of a range belong to it; of the words only "shared" is one port for all."""
    udp = Udp(ports=ports)
    assert udp.port_range == found
    assert udp.shared == (ports == "shared")
    assert make_config({"workers": 1, "listen": [{"udp": {"ports": ports}}]}).listen[0].udp == udp


@pytest.mark.parametrize(
    ("advertise", "local", "public"),
    [
        (None, "127.0.0.1", "127.0.0.1"),
        ("192.0.2.1", "127.0.0.1", "192.0.2.1"),
        ("192.0.2.1", "0.0.0.0", "192.0.2.1"),
        ("192.0.2.1", "::1", "::1"),
        ("2001:db8::1", "::1", "2001:db8::1"),
        ("2001:db8::1", "127.0.0.1", "127.0.0.1"),
        ("::ffff:192.0.2.1", "127.0.0.1", "192.0.2.1"),
        ("192.0.2.1", "localhost", "localhost"),
    ],
)
def test_what_clients_are_told(advertise: str | None, local: str, public: str) -> None:
    """The advertised address stands in place of one of its own version only: clients keep the one that they speak."""
    assert Udp(advertise).public(parse_host(local)) == parse_host(public)


def test_a_configuration_does_not_change() -> None:
    """Parts keep what they were given."""
    with pytest.raises(AttributeError):
        Config().workers = 2  # type: ignore[misc]


# --- mistakes ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # unknown keys, at each level
        ("bogus = 1", f"bogus: unknown key, expected one of: {TOP}"),
        ("[rule]\nname = 1", "rule: expected array of tables, got table: write [[rule]]"),
        ("[[rule]]\naction = 'allow'\nhost = ['*']", f"rule[0].host: unknown key, expected one of: {RULE}"),
        ("[[rule]]\nname = 'no mail'", "rule[0].action: missing"),
        (
            "[[rule]]\naction = 'refuse'",
            "rule[0].action: invalid enum value 'refuse', expected allow, deny, reset or drop",
        ),
        ("[[rule]]\naction = 'deny'\nname = \"a\\nb\"", "rule[0].name: 'a\\nb', expected a name that can be printed"),
        ("[groups.'@dev']", "groups.@dev: a group's name stands without the @ that rules put in front"),
        ("[quotas]\npath = ''", "quotas.path: expected the path of a file"),
        ("[[rule]]\naction = 'deny'\nports = 25", "rule[0].ports: expected array, got integer"),
        (
            "[[rule]]\naction = 'deny'\nports = ['25-']",
            "rule[0].ports[0]: '25-', expected a port or a range such as 465-587",
        ),
        (
            "[[rule]]\naction = 'deny'\nhosts = []",
            "rule[0].hosts: empty, expected one or more; leave it out to match all",
        ),
        (
            "[[rule]]\naction = 'allow'\nvia = 'tor'",
            "rule[0].via: there is no [egress.tor]",
        ),
        (
            "[[rule]]\naction = 'drop'\nvia = 'direct'",
            "rule[0].via: an egress for what is not allowed: action is drop",
        ),
        (
            "[[rule]]\naction = 'deny'\nlisteners = ['socks5://127.0.0.1:1']",
            "rule[0].listeners[0]: 'socks5://127.0.0.1:1', expected one of: mixed://127.0.0.1:1080",
        ),
        (
            "[guard]\ndeny = ['privat']",
            "guard.deny[0]: 'privat' is not a network, expected such as 10.0.0.0/8 or 2001:db8::1",
        ),
        ("[[clients]]\nnetworks = []", "clients[0].networks: empty, expected one or more"),
        ("[[clients]]\nlimits = {}", "clients[0].networks: missing"),
        ("[clients]\nnetworks = []", "clients: expected array of tables, got table: write [[clients]]"),
        (
            "[[clients]]\nnetworks = ['x']",
            "clients[0].networks[0]: 'x' is not a network, expected such as 10.0.0.0/8 or 2001:db8::1",
        ),
        ("decide = 'policy.py'", "decide: 'policy.py', expected python:module:function"),
        ("limits = { connections = 0 }", "limits.connections: 0, expected 1 to 1000000"),
        ("limits.per_client = { connections = 0 }", "limits.per_client.connections: 0, expected 1 to 1000000"),
        (
            "limits.per_client = { unauthenticated = '0%' }",
            f"limits.per_client.unauthenticated: '0%', {A_SHARE}",
        ),
        ("limits.per_client = { over = 1 }", f"limits.per_client.over: unknown key, expected one of: {PER_CLIENT}"),
        (
            "[groups.dev.limits]\nper_client = { connections = 1 }",
            "groups.dev.limits.per_client: it is for all clients: only [limits] can have it",
        ),
        ("limits = { burst = '1 MB' }", "limits.burst: a burst, but no bandwidth"),
        ("[groups.dev.limits]\nbandwith = 1", f"groups.dev.limits.bandwith: unknown key, expected one of: {LIMITS}"),
        (
            "[groups.dev.limits]\nbandwidth = '10'",
            BANDWIDTH,
        ),
        ("[egress.direct]\nbogus = 1", f"egress.direct.bogus: unknown key, expected one of: {EGRESS}"),
        (
            "[egress.a]\nsource = ['here']",
            "egress.a.source[0]: 'here' is not a network, expected such as 10.0.0.0/8 or 2001:db8::1",
        ),
        (
            "[egress.a]\nsource = ['10.0.0.1/8']",
            "egress.a.source[0]: '10.0.0.1/8' has host bits set, expected 10.0.0.0/8",
        ),
        ("[egress.a]\nsource_by = 'user'", "egress.a.source_by: there is no source"),
        (
            "[egress.a]\nsource_by = 'host'",
            "egress.a.source_by: invalid enum value 'host', expected session, user or client",
        ),
        (
            "[egress.a]\ninterface = 'a-name-too-long-'",
            "egress.a.interface: 'a-name-too-long-', expected the name of an interface",
        ),
        ("[egress.a]\nmark = 0", "egress.a.mark: 0, expected 1 to 4294967295"),
        ("[egress.block]", "egress.block: the name of the one that leads nowhere"),
        ("[egress.a]\nurl = 'socks5://a'\nchain = ['http://b']", "egress.a: expected one of url, chain and members"),
        ("[egress.a]\nmembers = []", "egress.a.members: empty, expected one or more"),
        ("[egress.a]\nchain = []", "egress.a.chain: empty, expected one or more"),
        ("[egress.a]\nurl = 'socks5://b:0'", f"egress.a.url: port 0, {EXPECTED}"),
        ("[egress.a]\nchain = ['u:hunter2@b']", "egress.a.chain[0]: there is no [egress.…@b]"),
        ("[egress.a]\nurl = 'socks5//u:hunter2@b'", "egress.a.url: '…@b', expected the URL of a proxy"),
        ("[[rule]]\naction = 'allow'\nvia = 'socks5://u:hunter2@b'", "rule[0].via: there is no [egress.…@b]"),
        (
            "[egress.direct]\nurl = 'socks5://b'",
            "egress.direct.url: direct leads from this machine: give this one another name, and a rule",
        ),
        ("[egress.a]\nurl = 'direct'", "egress.a.url: 'direct', expected the URL of a proxy"),
        ("[egress.a]\nchain = ['direct', 'b']", "egress.a.chain[1]: 'b', expected the URL of a proxy"),
        ("[egress.a]\nchain = ['b']", "egress.a.chain[0]: there is no [egress.b]"),
        ("[egress.a]\nmembers = ['b']\n[egress.b]\nchain = ['a']", "egress.a: leads to itself"),
        ("[egress.a]\nmembers = ['socks5://x:a@b', 'socks5://y:z@b']", "egress.a.members[1]: the same as members[0]"),
        ("[egress.a]\nmembers = [{ to = 'block', weight = 0 }]", "egress.a.members[0].weight: 0, expected more than 0"),
        (
            "[egress.a]\nmembers = [{ too = 'b' }]",
            "egress.a.members[0].too: unknown key, expected one of: to, weight, labels",
        ),
        ("[egress.a]\nisolate = ['user']", "egress.a.isolate: there is no proxy"),
        ("[egress.a]\nurl = 'http://b'\nisolate = ['user']", "egress.a.isolate: the last proxy is not of SOCKS5"),
        (
            "[egress.a]\nmembers = ['socks5://b', 'socks5://c']\nisolate = ['user']",
            "egress.a.isolate: this is a pool: say it in an egress for each member",
        ),
        (
            "[egress.a]\nchain = ['b']\nisolate = ['user']\n[egress.b]\nurl = 'socks5://c'",
            "egress.a.isolate: the chain ends with an egress: say it there",
        ),
        (
            "[egress.a]\nurl = 'socks5://a:b@c'\nisolate = ['user']",
            "egress.a.isolate: the last proxy has a user already",
        ),
        ("[egress.a]\nresolve = 'here'", "egress.a.resolve: there is no proxy"),
        ("[egress.a]\nca = 'x'", "egress.a.ca: there is no proxy"),
        ("[egress.a]\nurl = 'http://b'\nssh.key = 'x'", "egress.a.ssh: there is no SSH server"),
        (
            "[egress.a]\nurl = 'ssh://a@b'\nssh.password = 'x'",
            "egress.a.ssh.password: unknown key, expected one of: known_hosts, key, agent",
        ),
        (
            "[egress.a]\nmembers = ['ssh://b']",
            "egress.a.members[0]: an SSH server wants a user, expected ssh://user[:password]@host:port",
        ),
        ("[egress.a]\nbalance = 'hash'", "egress.a.balance: there are no members"),
        ("[egress.a]\ncheck = { connect = 'a:1' }", "egress.a.check: there are no members"),
        ("[egress.a]\nmembers = ['block']\ncheck = {}", "egress.a.check: expected one of connect and http"),
        (
            "[egress.a]\nmembers = ['block']\ncheck = { http = 'https://a/' }",
            "egress.a.check: 'https://a/', expected http://host:port/path",
        ),
        (
            "[egress.a]\nmembers = ['block']\nsticky = { ttl = 5 }",
            'egress.a.sticky: expected balance = "sticky" or "hash"',
        ),
        (
            "[egress.a]\nmembers = ['block']\nbalance = 'hash'\nsticky = { by = 'name' }",
            f"egress.a.sticky.by: 'name', expected some of {SOME}",
        ),
        (
            "[egress.a.check]\nevry = 1",
            "egress.a.check.evry: unknown key, expected one of: connect, http, every, timeout",
        ),
        (
            "[egress.a]\nchain = ['b', 'http://a']\nsend_proxy_protocol = 1\n[egress.b]\nurl = 'http://b'",
            "egress.a.send_proxy_protocol: it begins with another egress: say it there",
        ),
        (
            "[egress.a]\nmembers = ['direct']\nsend_proxy_protocol = 1",
            "egress.a.send_proxy_protocol: it begins with another egress: say it there",
        ),
        (
            "[egress.a]\nmembers = ['direct', 'ssh://u@b']\nsend_proxy_protocol = 1",
            "egress.a.send_proxy_protocol: an SSH server has one connection for all clients",
        ),
        (
            "[users_grammar]\nseparator = 'ab'",
            "users_grammar: 'ab', expected one character that is not a letter or a digit",
        ),
        (
            "[users_grammar]\nkeys = { a = 'b' }",
            "users_grammar.keys.a: invalid enum value 'b', expected label, session or ttl",
        ),
        (
            "[egress.direct]\nsend_proxy_protocol = 3",
            "egress.direct.send_proxy_protocol: invalid enum value 3, expected 1 or 2, or 0 for none",
        ),
        ("egress.direct = 1", "egress.direct: expected table, got integer"),
        (
            "[[listen]]\nbogus = 1",
            f"listen[0].bogus: unknown key, expected one of: {LISTEN_KEYS}",
        ),
        (
            "[[listen]]\n[[listen]]\nmode = 1",
            f"listen[1].mode: unknown key, expected one of: {LISTEN_KEYS}",
        ),
        (
            "[[listen]]\ntls = {cert = 'x'}",
            "listen[0].tls.cert: unknown key, expected one of: certificate, key, client_ca, client_name, ciphers",
        ),
        (
            '[users.alice]\npassword = "x"\nexpire = 2027-01-01',
            f"users.alice.expire: unknown key, expected one of: {USER}",
        ),
        (
            "[timeouts]\nidel = 1",
            "timeouts.idel: unknown key, expected one of: handshake, connect, idle, half_closed, bind, udp_idle, drain",
        ),
        ("[log]\nformats = 1", "log.formats: unknown key, expected one of: access, level, format, begin"),
        (
            "[[listen]]\nudp = {port = 1}",
            "listen[0].udp.port: unknown key, expected one of: advertise, ports, fragments, senders",
        ),
        (
            "[[listen]]\n[[listen]]\n[listen.udp]\nidle = 1",
            "listen[1].udp.idle: unknown key, expected one of: advertise, ports, fragments, senders",
        ),
        (
            "[users.'listen[0].udp']\npassword = 'x'\nport = 1",
            f"users.listen[0].udp.port: unknown key, expected one of: {USER}",
        ),
        # wrong types
        ("workers = 'x'", "workers: expected integer, got string"),
        ("workers = true", "workers: expected integer, got boolean"),
        ("workers = 1.5", "workers: expected integer, got float"),
        ("listen = 1", "listen: expected array of tables, got integer: write [[listen]]"),
        ("[listen]\nurl = 'x'", "listen: expected array of tables, got table: write [[listen]]"),
        ("listen = ['x']", "listen[0]: expected table, got string"),
        ("[[listen]]\nurl = 1", "listen[0].url: expected string, got integer"),
        ("[[listen]]\n[[listen]]\nurl = 1", "listen[1].url: expected string, got integer"),
        ("[[listen]]\nusers = 'all'", "listen[0].users: invalid enum value 'all', expected required, optional or none"),
        ("[[listen]]\nusers = 1", "listen[0].users: expected string, got integer"),
        ("[[listen]]\nudp = 'shared'", "listen[0].udp: expected table, got string"),
        ("[[listen]]\nudp = {advertise = 1}", "listen[0].udp.advertise: expected string, got integer"),
        ("[[listen]]\nudp = {ports = 40000}", "listen[0].udp.ports: expected string, got integer"),
        ("[[listen]]\nudp = {ports = [1, 2]}", "listen[0].udp.ports: expected string, got array"),
        ("[[listen]]\nudp = {fragments = false}", "listen[0].udp.fragments: expected string, got boolean"),
        (
            "[[listen]]\nudp = {fragments = 'keep'}",
            "listen[0].udp.fragments: invalid enum value 'keep', expected reassemble or drop",
        ),
        (
            "[[listen]]\n[listen.udp]\nsenders = 'all'",
            "listen[0].udp.senders: invalid enum value 'all', expected contacted or any",
        ),
        ("[[listen]]\ntls = true", "listen[0].tls: expected table, got boolean"),
        ("[[listen]]\ntls = {certificate = 1}", "listen[0].tls.certificate: expected string, got integer"),
        (
            "[[listen]]\ntls = {certificate = 'c', key = 'k', client_name = 'ip'}",
            "listen[0].tls.client_name: invalid enum value 'ip', expected cn, dns, email or uri",
        ),
        ("[[listen]]\nproxy_protocol = '10.0.0.0/8'", "listen[0].proxy_protocol: expected array, got string"),
        ("[[listen]]\nproxy_protocol = [1]", "listen[0].proxy_protocol[0]: expected string, got integer"),
        ("users = 1", "users: expected table, got integer"),
        ("users.alice = 'x'", "users.alice: expected table, got string"),
        ("[users.alice]\npassword = 1", "users.alice.password: expected string, got integer"),
        ("[users.alice]\npassword = ['sekret']", "users.alice.password: expected string, got array"),
        ("[users.alice]\npassword = 'x'\nplain = 'y'", "users.alice.plain: expected boolean, got string"),
        ("timeouts = 1", "timeouts: expected table, got integer"),
        ("log = 1", "log: expected table, got integer"),
        ("[log]\naccess = 1", "log.access: expected string, got integer"),
        ("[log]\nlevel = 'loud'", "log.level: invalid enum value 'loud', expected debug, info, warning or error"),
        # the right user among several, whatever its name is
        (
            "[users.a]\npassword = 'x'\nplain = true\n[users.'b.c']\npassword = 1\n[users.d]\npassword = 'y'",
            "users.b.c.password: expected string, got integer",
        ),
        ("[users.'[...]']\npassword = 1", "users.[...].password: expected string, got integer"),
        # missing
        ("[users.alice]\nplain = true", "users.alice.password: missing"),
        ("[[listen]]\ntls = {}", "listen[0].tls.certificate: missing"),
        ("[[listen]]\ntls = {certificate = 'c'}", "listen[0].tls.key: missing"),
        # values
        ("workers = -1", "workers: -1, expected 0 to 1024"),
        ("workers = 1025", "workers: 1025, expected 0 to 1024"),
        ("listen = []", "listen: empty, expected one or more"),
        ("[[listen]]\nusers = 'required'", 'listen[0].users: "required", but there are no users'),
        (
            "[[listen]]\n[[listen]]\nurl = 'ftp://127.0.0.1:1'",
            (
                "listen[1].url: protocol 'ftp', expected PROTOCOL://host:port, unix:///path or fd://NAME, and as "
                f"protocol one of {', '.join(LISTENER_PROTOCOLS)}"
            ),
        ),
        ("[[listen]]\n[[listen]]", "listen[1].url: the same address as listen[0].url"),
        (
            "[[listen]]\n[[listen]]\nurl = 'socks5://127.0.0.1'",
            "listen[1].url: the same address as listen[0].url",
        ),
        (
            "[[listen]]\nurl = 'unix:///a?mode=0660'\n[[listen]]\nurl = 'unix:///a?mode=660&protocol=socks5'",
            "listen[1].url: the same address as listen[0].url",
        ),
        (
            "[[listen]]\nurl = 'fd://'\n[[listen]]\nurl = 'fd://?protocol=http'",
            "listen[1].url: the same address as listen[0].url",
        ),
        *(
            (
                f"[[listen]]\nurl = '{scheme}://127.0.0.1'",
                'listen[0].tls: missing, expected { certificate = "…", key = "…" }',
            )
            for scheme in ("https", "socks5+tls", "socks4+tls", "mixed+tls")
        ),
        *(
            (
                f"[[listen]]\nurl = '{scheme}://127.0.0.1'\ntls = {{certificate = 'c', key = 'k'}}",
                f"listen[0].tls: {scheme} is without TLS, expected a URL with {wanted}",
            )
            for scheme, wanted in (
                ("http", "https"),
                ("socks5", "socks5+tls, mixed or mixed+tls"),
                ("socks4", "socks4+tls, mixed or mixed+tls"),
                ("socks4a", "socks4+tls, mixed or mixed+tls"),
            )
        ),
        (
            "[[listen]]\nproxy_protocol = ['unix', '10.0.0.1/8']",
            "listen[0].proxy_protocol: 10.0.0.1/8 has host bits set, expected networks such as 10.0.0.0/8",
        ),
        (
            "[[listen]]\nproxy_protocol = ['proxy.example']",
            (
                "listen[0].proxy_protocol: 'proxy.example' does not appear to be an IPv4 or IPv6 network, "
                "expected networks such as 10.0.0.0/8"
            ),
        ),
        (
            "[[listen]]\nurl = 'socks5://alice:sekret@127.0.0.1:1'",
            "listen[0].url: a listener has no user of its own, expected [users.NAME]",
        ),
        (
            "[users.alice]\npassword = 'sekret'",
            f"users.alice.password: {NO_HASH}; for the password itself say plain = true",
        ),
        (
            "[users.alice]\npassword = '$2b$12$sekret'",
            f"users.alice.password: {NO_HASH}",
        ),
        (
            "[users.alice]\npassword = ''\nplain = true",
            "users.alice.password: a password has 1 to 255 octets (RFC 1929)",
        ),
        (
            f"[users.alice]\npassword = '{'ä' * 128}'\nplain = true",
            "users.alice.password: a password has 1 to 255 octets (RFC 1929)",
        ),
        (
            f"[users.alice]\npassword = '{HASH}'\nplain = true",
            "users.alice.password: begins as a hash does: leave plain = true out",
        ),
        ("[users.'']\npassword = 'x'\nplain = true", "users.: a user name has 1 to 255 octets (RFC 1929)"),
        (
            f"[users.{'a' * 256}]\npassword = 'x'\nplain = true",
            f"users.{'a' * 256}: a user name has 1 to 255 octets (RFC 1929)",
        ),
    ],
)
def test_a_mistake_names_its_key(text: str, message: str) -> None:
    """The message begins with the key's path as it is in the file; no secret is in it."""
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert str(caught.value) == message
    assert caught.value.path == message.partition(": ")[0]


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ('"a\\nb\\u001b[31m" = 1', r"a\nb\x1b[31m: unknown key, "),
        ('[egress."a\\nb"]\nmark = 0', r"egress.a\nb.mark: 0, "),
        ('[users."a\\nb"]\npassword = 1', r"users.a\nb.password: expected string"),
        ('[users."a\\nb"]\npassword = "x"', r"users.a\nb.password: expected $scrypt$"),
        ('[log]\nlevel = "a\\u009bb"', r"log.level: invalid enum value 'a\x9bb'"),
    ],
)
def test_control_characters_come_out_escaped(text: str, start: str) -> None:
    """A message is one line and moves no cursor, whatever the file has."""
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert str(caught.value).startswith(start)
    assert str(caught.value).isprintable()


UDP_ADDRESS = "expected an IP address that clients can send to, or a name with a dot that has one"
UDP_PORTS = 'expected a range such as "40000-40999", or "shared"'
UDP_ORDER = "expected the lower port first, 1 to 65535"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        *(("advertise", value, UDP_ADDRESS) for value in ("", "proxy", "1.2", "192.0.2.1:1080", "[2001:db8::1]", "1")),
        *(("advertise", value, UDP_ADDRESS) for value in ("a.7", "a..b", ".a.b", "a b.c", "a.b:1")),
        *(("advertise", value, UDP_ADDRESS) for value in ("0.0.0.0", "::", "::ffff:0.0.0.0", "fe80::1%lo")),
        *(("advertise", value, UDP_ADDRESS) for value in ("224.0.0.1", "ff02::1", "255.255.255.255")),
        *(("ports", value, UDP_PORTS) for value in ("", "40000", "40000-", "-40000", "1 - 2", "1-2-3", "1-2\n", "any")),
        *(("ports", value, UDP_PORTS) for value in ("1-100000", "Shared", "\uff11-\uff12", "+1-2", "0x1-0x2")),
        *(("ports", value, UDP_ORDER) for value in ("0-10", "0-0", "2-1", "40000-65536", "99999-99999")),
    ],
)
def test_a_bad_place_for_datagrams_names_its_key(key: str, value: str, expected: str) -> None:
    """What can be nobody's address, and what is no range of ports: the value, and what was expected."""
    for index in (0, 1):
        listen: list[dict[str, object]] = [{"url": f"socks5://127.0.0.1:{port}"} for port in (1, 2)]
        listen[index]["udp"] = {key: value}
        with pytest.raises(ConfigError) as caught:
            make_config({"listen": listen})
        assert str(caught.value) == f"listen[{index}].udp.{key}: {value!r}, {expected}"
        assert caught.value.path == f"listen[{index}].udp.{key}"


@pytest.mark.parametrize("workers", [0, 2])
def test_one_port_is_not_shared_by_processes(workers: int) -> None:
    """The kernel would give each datagram to any of them."""
    with pytest.raises(ConfigError) as caught:
        parse_config(f"workers = {workers}\n[[listen]]\nudp = {{ports = 'shared'}}")
    expected = f'"shared" with workers = {workers}, expected workers = 1 or a range of ports'
    assert str(caught.value) == f"listen[0].udp.ports: {expected}"


@pytest.mark.parametrize("key", Timeouts.__struct_fields__)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0", "a duration is more than 0 and less than 1e9 seconds, this one is 0"),
        ("-1", "a duration is more than 0 and less than 1e9 seconds, this one is -1"),
        ("nan", "a duration is more than 0 and less than 1e9 seconds, this one is nan"),
        ("inf", "a duration is more than 0 and less than 1e9 seconds, this one is inf"),
        ("'0 ms'", "a duration is more than 0 and less than 1e9 seconds, this one is 0.0"),
        ("true", 'true is not a duration, expected seconds such as 10 or text such as "200ms"'),
        ("'soon'", "'soon' is not a duration, expected seconds such as 10 or text such as \"200ms\""),
        ("[1]", '[1] is not a duration, expected seconds such as 10 or text such as "200ms"'),
    ],
)
def test_a_bad_duration_names_its_key(key: str, value: str, message: str) -> None:
    """Every timeout is more than 0 seconds, a number or text with a unit."""
    if key == "idle":
        if value in ("0", "'0 ms'", "inf"):
            assert parse_config(f"[timeouts]\nidle = {value}").timeouts.idle == float("inf")
            return
        message += '; for any time it is 0 or "never"'
    if key == "drain":
        if value == "inf":
            assert parse_config(f"[timeouts]\ndrain = {value}").timeouts.drain == float("inf")
            return
        message += '; for as long as it takes it is "never"'
    with pytest.raises(ConfigError) as caught:
        parse_config(f"[timeouts]\n{key} = {value}")
    assert str(caught.value).lower() == f"timeouts.{key}: {message}".lower()


@pytest.mark.parametrize(
    "text", ["workers =", "= 1", "[listen", "[users.alice\n", "a = 'x", "workers = 1\nworkers = 2"]
)
def test_what_is_no_toml(text: str) -> None:
    """The message is the parser's, with the line."""
    with pytest.raises(ConfigError, match=r"\(at .*\)$|Cannot overwrite") as caught:
        parse_config(text)
    assert caught.value.path is None


def test_the_hook_knows_its_types() -> None:
    """A type that has no reading of its own is a mistake in the schema."""
    with pytest.raises(NotImplementedError):
        decode_special(complex, 1)


# --- names ---

SERVERS = "expected system, an IP address, udp://IP, tcp://IP, tls://HOST or https://HOST/dns-query"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("servers = []", "servers: empty, expected one or more"),
        ('servers = ["dns.example"]', f"servers[0]: 'dns.example' is not an IP address, {SERVERS}"),
        ('servers = ["system", "quic://1.1.1.1"]', f"servers[1]: protocol 'quic', {SERVERS}"),
        ("servers = [1]", "servers[0]: expected string, got integer"),
        ('ca = "ca.pem"', "ca: no server has tls or https"),
        ("tries = 0", "tries: 0, expected 1 to 10"),
        ("cache = -1", "cache: -1, expected 0 to 1000000"),
        ("cache = 1000001", "cache: 1000001, expected 0 to 1000000"),
        ('min_ttl = 10\nmax_ttl = "5 s"', "min_ttl: 10, which is more than max_ttl"),
        ('prefer = "ipv5"', "prefer: invalid enum value 'ipv5', expected any, ipv4, ipv6, ipv4-only or ipv6-only"),
        ("hosts = 1", "hosts: expected table, got integer"),
        ("hosts = {a = ['1.1.1.1'], b = '1.1.1.1'}", "hosts.b: expected array, got string"),
        ("hosts = {a = ['1.1.1.1'], b = [1]}", "hosts.b[0]: expected string, got integer"),
        ("hosts = {a = []}", "hosts.a: empty, expected one address or more"),
        ("hosts = {a = ['::1', 'b']}", "hosts.a[1]: 'b', expected an IP address"),
        ("hosts = {'*.a' = ['::1']}", "hosts.*.a: '*.a' is not a name"),
        ("hosts = {'10.0.0.1' = ['::1']}", "hosts.10.0.0.1: '10.0.0.1' is not a name"),
        ("hosts = {'127.1' = ['::1']}", "hosts.127.1: '127.1' is not a name"),
        ("hosts = {'1.2.3.4.5' = ['::1']}", "hosts.1.2.3.4.5: neither an address nor a name"),
        ("hosts = {'db.7' = ['::1']}", "hosts.db.7: neither an address nor a name"),
        ("hosts = {'1.2.3' = ['::1']}", "hosts.1.2.3: '1.2.3' is not a name"),
        ("hosts = {a = ['::1'], A = ['::1']}", "hosts.A: the same name twice"),
        ("hosts = {'a.' = ['::1'], a = ['::1']}", "hosts.a: the same name twice"),
        ("hosts = {'.' = ['::1']}", "hosts..: '.' is not a name"),
    ],
)
def test_a_mistake_about_names_names_its_key(text: str, message: str) -> None:
    """As of everything else, with the table's own key where it is a table."""
    with pytest.raises(ConfigError) as caught:
        parse_config(f"[resolver]\n{text}")
    assert str(caught.value) == f"resolver.{message}"


def test_an_answer_may_have_to_be_kept_for_one_time_exactly() -> None:
    """The least time and the most may be the same; only a least one above it is a mistake."""
    settings = parse_config('[resolver]\nmin_ttl = 10\nmax_ttl = "10 s"').resolver
    assert settings.min_ttl == settings.max_ttl == Seconds(10)


def test_hosts_are_looked_for_in_lower_case_and_idna() -> None:
    """As clients' names are; without a dot at the end."""
    hosts = make_hosts(
        parse_config('[resolver]\nhosts = { "DB.Internal." = ["10.0.0.9", "::1"], "bücher.test" = ["::2"] }')
    )
    assert hosts == {
        "db.internal": [parse_host("10.0.0.9"), parse_host("::1")],
        "xn--bcher-kva.test": [parse_host("::2")],
    }


# --- files ---


def test_a_file(tmp_path: Path) -> None:
    """A file is read as UTF-8."""
    path = tmp_path / "tabi.toml"
    path.write_text(EVERYTHING, encoding="utf-8")
    assert load_config(path) == load_config(str(path)) == parse_config(EVERYTHING)


def test_a_mistake_names_the_file_too(tmp_path: Path) -> None:
    """``file: key: what``, as editors and people expect it."""
    path = tmp_path / "tabi.toml"
    path.write_text("[log]\nlevel = 1")
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: log\.level: ") as caught:
        load_config(path)
    assert caught.value.path == str(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a folder and one that is no UTF-8 are mistakes of the configuration."""
    with pytest.raises(ConfigError, match=r"missing\.toml: No such file or directory$"):
        load_config(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match=r": Is a directory$"):
        load_config(tmp_path)
    path = tmp_path / "latin.toml"
    path.write_bytes("# jürgen".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.toml: no UTF-8 text at octet 3"):
        load_config(path)


# --- secrets ---


def test_no_secret_in_any_repr() -> None:
    """Neither repr nor str nor what rich prints of a configuration or a URL holds a password or a hash."""
    url = parse_url("socks5://alice:sekret@127.0.0.1:1080")
    for value in (parse_config(EVERYTHING), UserConfig("sekret", plain=True), UserConfig(HASH), url, {"found": [url]}):
        for text in (repr(value), str(value), f"{value}", pretty_repr(value)):
            assert "sekret" not in text
            assert "scrypt" not in text
    assert str(url) == "socks5://127.0.0.1:1080"


# --- durations ---


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (1, 1),
        (0.25, 0.25),
        ("10", 10),
        ("10s", 10),
        ("10 s", 10),
        (" 10 s ", 10),
        ("200ms", 0.2),
        ("1.5 min", 90),
        ("5 min", 300),
        ("2h", 7200),
        ("1d", 86400),
    ],
)
def test_durations(value: object, seconds: float) -> None:
    """Bare numbers are seconds; ms, s, min, h and d are the units."""
    found = Seconds.parse(value)
    assert found == pytest.approx(seconds)
    assert isinstance(found, Seconds)


@pytest.mark.parametrize(
    "value", ["", "s", "10 m", "10S", "1 s 2 ms", "-1", "1e3", "1,5", ".5", "1.", None, [], True, b"1"]
)
def test_what_is_no_duration(value: object) -> None:
    """No other units, signs or exponents, no switches."""
    with pytest.raises(ValueError, match="is not a duration"):
        Seconds.parse(value)


@pytest.mark.parametrize("value", [0, -1, 0.0, float("nan"), float("inf"), 1e9, 10**30, "0", "0.0 ms", "99999999 h"])
def test_durations_out_of_bounds(value: object) -> None:
    """A deadline is more than nothing and less than for ever."""
    with pytest.raises(ValueError, match="more than 0 and less than 1e9 seconds"):
        Seconds.parse(value)


@given(st.one_of(st.text(), st.text("0123456789. msinhd"), st.floats(), st.integers(), st.booleans(), st.none()))
def test_anything_is_a_duration_or_value_error(value: object) -> None:
    """Nothing else is raised, and what comes out can be waited for."""
    try:
        found = Seconds.parse(value)
    except ValueError:
        return
    assert 0 < found < 1e9


@given(st.floats(0.001, 86400), st.sampled_from(["ms", "s", "min", "h", "d", ""]))
def test_a_duration_with_a_unit(number: float, unit: str) -> None:
    """The number times the unit."""
    factor = {"ms": 0.001, "s": 1, "min": 60, "h": 3600, "d": 86400, "": 1}[unit]
    text = f"{number:.6f}"
    if 0 < float(text) * factor < 1e9:
        assert Seconds.parse(f"{text} {unit}") == pytest.approx(float(text) * factor)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("workers = " + "9" * 6000, "Exceeds the limit"),
        ('[log]\naccess = "a\\u0000b"', "log.access: expected stdout, stderr, syslog, syslog://host:port, journald, "),
        ('[log]\naccess = ""', "log.access: expected stdout"),
        ('[log]\naccess = "udp://loghost:514"', "log.access: expected stdout"),
        ('[log]\naccess = "syslog://loghost:0"', "log.access: port 0, expected syslog://host:port"),
        ('[log]\nformat = "xml"', "log.format: invalid enum value 'xml', expected auto, json, text or logfmt"),
        ("[log]\nbegin = 1", "log.begin: expected boolean, got integer"),
        ('[log]\nlevel = "loud"', "log.level: invalid enum value 'loud', expected debug, info, warning or error"),
        (
            '[[listen]]\nurl = "socks5://127.0.0.1:1"\n[[listen]]\nurl = "socks5://127.0.0.1:1"',
            r"listen\[1\].url: the same address as listen\[0\].url",
        ),
    ],
)
def test_odd_files_are_errors_of_the_configuration(text: str, message: str) -> None:
    """Whatever is in the file: one line that says what and where, never a traceback."""
    with pytest.raises(ConfigError, match=f"^{message}"):
        parse_config(text)


def test_a_file_that_is_no_text_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    """It says where; a byte order mark in front of a right file does no harm."""
    file = tmp_path / "tabi.toml"
    file.write_bytes(b"workers = 1\n\xff\xfe")
    with pytest.raises(ConfigError, match=r"tabi.toml: no UTF-8 text at octet 12$"):
        load_config(file)
    file.write_bytes(b"\xef\xbb\xbfworkers = 3\n")
    assert load_config(file).workers == 3
