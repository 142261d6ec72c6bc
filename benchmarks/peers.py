"""The servers that are measured. To add one: a function that makes it ready, one that says how it starts, and a line
in `PEERS`.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import functools
import importlib.metadata
import os
import pwd
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from distortion import FAULTS, fault_command
from https_origin import names, origin, proxy_authority
from process import Failure, free_port, running
from scenarios import LISTENERS, Listener

ROOT = Path(__file__).resolve().parent.parent
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
PYPI = ROOT / ".cache" / "benchmarks"
"""The virtual environment of the peers that come from PyPI: apart from ours, which they must not change."""

MITMPROXY = ROOT / ".cache" / "benchmarks-mitmproxy"
"""Another one, for it wants versions of its own of much that others want, too."""

CERTGEN = Path("/usr/lib/squid/security_file_certgen")
"""What makes certificates for Squid: Debian's other build of it has none."""

TLS = ROOT / ".cache" / "benchmarks-tls"
"""The certificate and the key of every server that speaks TLS."""

NGINX_STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
"""Where Debian has nginx's stream module."""

MAX_CLIENTS = 1000
"""Connections that tinyproxy takes at once: more than any load has, with those that it has not yet ended."""

Command = Callable[[int, Path], list[str]]
"""How a server is started: in the foreground, no authentication, on this port of 127.0.0.1, files in this folder."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to measure."""

    name: str
    prepare: Callable[[], str]
    """Makes it ready to run and returns its version. Raises Failure with the reason where that cannot be."""
    commands: Mapping[Listener, Command]
    """By the listener that a scenario wants; it takes part in those alone that it has a command for."""
    by_address: bool = False
    """It is asked for addresses where a scenario asks for names."""
    straight: bool = False
    """It leads to the destination by itself, without SOCKS5: to the port that the name in the SNI gives."""
    connect: bool = False
    """It is asked by CONNECT of HTTP where others are by SOCKS5."""


def apt_install(package: str) -> None:
    """Install a Debian package if this is root and has apt."""
    if os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", package]):
            subprocess.run(["apt-get", *words], env=environment, capture_output=True)


def install_debian(program: str, package: str) -> str | None:
    """Find a program, install its package if need be and this is root. None: it is not there."""
    if shutil.which(program, path=PATH) is None:
        apt_install(package)
    return shutil.which(program, path=PATH)


def debian(program: str, package: str) -> str:
    """Make a Debian package ready; its version."""
    if install_debian(program, package) is None:
        raise Failure(f"not installed (Debian package {package})")
    query = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True)
    return query.stdout or "of unknown version"


def pypi(package: str, version: str, environment: Path = PYPI) -> str:
    """Make one version of a PyPI package ready; the version."""
    python = environment / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{package}=={version}"]
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", environment], check=True, capture_output=True, text=True)
        subprocess.run(pip, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as exc:
        lines = [line for line in exc.stderr.splitlines() if not line.startswith("WARNING")]
        raise Failure(f"cannot be installed: {lines[-1] if lines else 'pip gives no reason'}") from None
    return version


def tabi_version() -> str:
    """Our own, with the commit where there is one."""
    if not (Path(sys.executable).parent / "tabi").exists():
        raise Failure(f"no command tabi beside {sys.executable}: `make bench` installs it")
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(describe, capture_output=True, text=True).stdout.strip()
    except OSError:
        commit = ""
    return importlib.metadata.version("tabi") + (f" ({commit})" if commit else "")


@functools.cache
def make_certificate() -> tuple[Path, Path]:
    """The certificate (ECDSA P-256) and its key: made once in a run, the same for all. Raises Failure."""
    certificate, key = TLS / "s.pem", TLS / "s.key"
    if install_debian("openssl", "openssl") is None:
        raise Failure("no certificate without openssl (Debian package openssl)")
    TLS.mkdir(parents=True, exist_ok=True)
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
    files = ["-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)]
    done = subprocess.run(["openssl", "req", *kind, *files], capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"openssl cannot make a certificate: {done.stderr.strip().splitlines()[-1]}")
    return certificate, key


def tabi_command(listener: Listener, port: int, folder: Path) -> list[str]:
    """As people run it: one worker, with the access log."""
    config, url = folder / "tabi.toml", f"{listener}://127.0.0.1:{port}"
    text = f'workers = 1\n\n[log]\naccess = "{folder}/access.log"\n'
    serve = [f"{Path(sys.executable).parent}/tabi", "serve", "-c", str(config)]
    if listener == "socks5+tls":
        certificate, key = make_certificate()
        config.write_text(
            f'{text}\n[[listen]]\nurl = "{url}"\ntls = {{ certificate = "{certificate}", key = "{key}" }}\n'
        )
        return serve
    config.write_text(text)
    return [*serve, "-l", url]


ALICE = '[users.alice]\npassword = "secret"\nplain = true\n'
ALL_LIMITS = (
    'limits = { connections = 100_000, connect_rate = "1000000/s", bandwidth = "10 GB/s", quota = "1 TB/day", '
    'max_session = "1 d" }\n'
)


def policy_command(alice: str, rules: int, port: int, folder: Path) -> list[str]:
    """tabi for one user: what the file says of her, and how many rules there are, none of which matches."""
    config = folder / "tabi.toml"
    networks = [f"10.{number >> 8}.{number & 255}.0/24" for number in range(rules // 2)]
    hosts = [*networks, *(f"host{number}.example.com" for number in range(rules - len(networks)))]
    config.write_text(
        f'workers = 1\n[log]\naccess = "{folder}/access.log"\n[quotas]\npath = "{folder}/quotas.sqlite"\n'
        + "".join(f'[[rule]]\nhosts = ["{host}"]\naction = "deny"\n' for host in hosts)
        + ALICE
        + alice
    )
    return [f"{Path(sys.executable).parent}/tabi", "serve", "-c", str(config), "-l", f"socks5://127.0.0.1:{port}"]


@functools.cache
def upstream(name: str) -> str:
    """A proxy for others to go through, as a URL: one of each kind for the whole run, and nothing of it is counted."""
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="tabi-bench-upstream-"))
    if name == "microsocks":
        debian("microsocks", "microsocks")
        command = microsocks_command(port, folder)
    else:
        command = tabi_command("socks5", port, folder)
    stack = contextlib.ExitStack()
    stack.enter_context(running(command, port, folder / "output"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(stack.close)
    return f"socks5://127.0.0.1:{port}"


def via_command(name: str, port: int, folder: Path) -> list[str]:
    """tabi through another proxy."""
    return [*tabi_command("socks5", port, folder), "--via", upstream(name)]


def names_command(addresses: str, port: int, folder: Path) -> list[str]:
    """tabi that knows the name which `load` asks for."""
    command = tabi_command("socks5", port, folder)
    with (folder / "tabi.toml").open("a") as config:
        config.write(f'[resolver]\nhosts = {{ "known.bench" = {addresses} }}\n')
    return command


HOOKS = """\
class Look:
    def request(self, flow):
        self.agent = flow.request.headers.get("User-Agent")

    def response(self, flow):
        self.status = flow.response.status
"""


def looking_command(port: int, folder: Path) -> list[str]:
    """tabi that looks into all TLS, with hooks that look at each head."""
    command, authority = tabi_command("socks5", port, folder), proxy_authority()
    (folder / "hooks.py").write_text(HOOKS)
    with (folder / "tabi.toml").open("a") as config:
        config.write(
            f'[ca]\ncertificate = "{authority}/ca.crt"\nkey = "{authority}/ca.key"\n'
            f'[[intercept]]\ntrust = "{origin().authority}"\nscripts = ["{folder}/hooks.py"]\n'
            "[resolver.hosts]\n" + "".join(f'"{name}" = ["127.0.0.1"]\n' for name in names())
        )
    return command


def looking_elsewhere_command(port: int, folder: Path) -> list[str]:
    """tabi that looks into the TLS of hosts that nobody asks for."""
    command, authority = tabi_command("socks5", port, folder), proxy_authority()
    with (folder / "tabi.toml").open("a") as config:
        config.write(
            f'[ca]\ncertificate = "{authority}/ca.crt"\nkey = "{authority}/ca.key"\n'
            '[[intercept]]\nhosts = ["*.tabi.bench"]\n'
        )
    return command


def squid_version() -> str:
    """Squid, built with OpenSSL."""
    if install_debian("squid", "squid-openssl") is not None and not CERTGEN.exists():
        raise Failure(f"no {CERTGEN} (Debian package squid-openssl)")
    return debian("squid", "squid-openssl")


def squid_command(port: int, folder: Path) -> list[str]:
    """One worker that opens all TLS, keeps nothing, and logs nothing."""
    shutil.copytree(proxy_authority(), folder / "ca")
    shutil.copy(origin().authority, folder / "origin.crt")
    (folder / "hosts").write_text("".join(f"127.0.0.1 {name}\n" for name in names()))
    made = subprocess.run([CERTGEN, "-c", "-s", folder / "db", "-M", "16MB"], capture_output=True)
    if made.returncode:
        raise Failure("security_file_certgen cannot make its folder")
    user = ""
    if os.geteuid() == 0:  # it does not run as root
        user = "cache_effective_user proxy\ncache_effective_group proxy\n"
        for path in [folder, *folder.rglob("*")]:
            shutil.chown(path, "proxy", "proxy")
    (folder / "squid.conf").write_text(
        f"http_port 127.0.0.1:{port} ssl-bump tls-cert={folder}/ca/ca.pem generate-host-certificates=on "
        "dynamic_cert_mem_cache_size=16MB\n"
        f"sslcrtd_program {CERTGEN} -s {folder}/db -M 16MB\nsslcrtd_children 2 startup=2 idle=1\n"
        f"tls_outgoing_options cafile={folder}/origin.crt\nssl_bump bump all\nhttp_access allow all\n"
        f"cache deny all\naccess_log none\ncache_log {folder}/cache.log\npid_filename {folder}/pid\n"
        f"coredump_dir {folder}\nhosts_file {folder}/hosts\nshutdown_lifetime 1 seconds\n"
        f"visible_hostname proxy.tabi.bench\npinger_enable off\n{user}"
    )
    return [shutil.which("squid", path=PATH) or "squid", "-n", f"bench{port}", "-N", "-f", f"{folder}/squid.conf"]


def sslsplit_command(port: int, _: Path) -> list[str]:
    """TLS opened for one destination, which it is given; it looks at nothing inside."""
    authority = proxy_authority()
    files = ["-k", f"{authority}/ca.key", "-c", f"{authority}/ca.crt"]
    return ["sslsplit", *files, "-P", "ssl", "127.0.0.1", str(port), "127.0.0.1", str(origin().port)]


def mitmdump_command(port: int, folder: Path) -> list[str]:
    """Quiet, with bodies of more than 1 MB streamed."""
    shutil.copytree(proxy_authority(), folder / "ca")
    settings = {
        "confdir": f"{folder}/ca",
        "ssl_verify_upstream_trusted_ca": origin().authority,
        "stream_large_bodies": "1m",
        "listen_host": "127.0.0.1",
    }
    options = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    return [f"{MITMPROXY}/bin/mitmdump", "-q", "--mode", "socks5", "-p", str(port), *options]


def microsocks_command(port: int, _: Path) -> list[str]:
    """As people run it."""
    return ["microsocks", "-i", "127.0.0.1", "-p", str(port)]


def dante_command(port: int, folder: Path) -> list[str]:
    """One accepting process for each CPU; as many processes for the tunnels as it likes."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    config = folder / "danted.conf"
    config.write_text(
        f"logoutput: {folder}/danted.log\n"
        f"internal: 127.0.0.1 port = {port}\n"
        "external: lo\n"
        "clientmethod: none\n"
        "socksmethod: none\n"
        f"user.privileged: {user}\n"
        f"user.unprivileged: {'nobody' if user == 'root' else user}\n"
        "client pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }\n"
        "socks pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }\n"
    )
    return [shutil.which("danted", path=PATH) or "danted", "-N", str(os.cpu_count() or 1), "-f", str(config)]


def nginx_version() -> str:
    """nginx with its stream module, and the OpenSSL that it runs with."""
    if not NGINX_STREAM.exists():
        apt_install("libnginx-mod-stream")
    version = debian("nginx", "nginx")
    about = subprocess.run([shutil.which("nginx", path=PATH) or "nginx", "-V"], capture_output=True, text=True).stderr
    return version + "".join(
        f" ({line.removeprefix('built with ')})" for line in about.splitlines() if "OpenSSL" in line
    )


def nginx_command(port: int, folder: Path) -> list[str]:
    """One worker that ends the TLS of clients; all else as nginx has it."""
    certificate, key = make_certificate()
    config = folder / "nginx.conf"
    config.write_text(
        (f"load_module {NGINX_STREAM};\n" if NGINX_STREAM.exists() else "")
        + f"daemon off;\nworker_processes 1;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log;\nevents {{}}\n"
        "stream {\n"
        "  map $ssl_server_name $destination { ~^port-(?<number>[0-9]+)$ 127.0.0.1:$number; }\n"
        "  server {\n"
        f"    listen 127.0.0.1:{port} ssl;\n"
        f"    ssl_certificate {certificate};\n"
        f"    ssl_certificate_key {key};\n"
        "    ssl_protocols TLSv1.3;\n"
        "    proxy_pass $destination;\n"
        "  }\n"
        "}\n"
    )
    return [shutil.which("nginx", path=PATH) or "nginx", "-e", f"{folder}/error.log", "-c", str(config)]


def tinyproxy_command(port: int, folder: Path) -> list[str]:
    """In the foreground, as good as silent."""
    config = folder / "tinyproxy.conf"
    config.write_text(
        f"Port {port}\nListen 127.0.0.1\nAllow 127.0.0.1\nMaxClients {MAX_CLIENTS}\n"
        f'LogFile "{folder}/tinyproxy.log"\nLogLevel Critical\n'
    )
    return [shutil.which("tinyproxy", path=PATH) or "tinyproxy", "-d", "-c", str(config)]


def custom(text: str) -> Peer:
    """A server from the command line, ``NAME=COMMAND`` with ``{port}`` in it, for argparse."""
    name, _, command = text.partition("=")
    if not name or "{port}" not in command:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=COMMAND with {{port}} in the command")

    def start(port: int, _: Path) -> list[str]:
        return shlex.split(command.replace("{port}", str(port)))

    return Peer(name, lambda: "as given", dict.fromkeys(LISTENERS, start))


PEERS = [
    Peer(
        "tabi",
        tabi_version,
        {
            **{name: functools.partial(tabi_command, name) for name in LISTENERS},
            "10 rules": functools.partial(policy_command, ALL_LIMITS, 10),
            "20,000 rules": functools.partial(policy_command, ALL_LIMITS, 20_000),
            "10 MB/s": functools.partial(policy_command, 'limits = { bandwidth = "10 MB/s" }\n', 0),
            "through microsocks": functools.partial(via_command, "microsocks"),
            "through tabi": functools.partial(via_command, "tabi"),
            "bulk through microsocks": functools.partial(via_command, "microsocks"),
            "a name": functools.partial(names_command, '["127.0.0.1"]'),
            "two addresses": functools.partial(names_command, '["127.0.0.1", "127.0.0.2"]'),
            "a pool": functools.partial(tabi_command, "socks5"),
            "looks into TLS": looking_command,
            "looks into HTTP/2": looking_command,
            "looks into others": looking_elsewhere_command,
            **{name: functools.partial(fault_command, name) for name in LISTENERS if name in FAULTS},
        },
    ),
    *(
        Peer(name, tabi_version, {"looks into others": functools.partial(tabi_command, "socks5")})
        for name in ("tabi-looks-into-nothing", "tabi-the-same-again")
    ),
    Peer("tabi-socks5", tabi_version, {"mixed": functools.partial(tabi_command, "socks5")}),
    Peer(
        "tabi-no-fault",
        tabi_version,
        dict.fromkeys(("100 ms later", "a fault of other hosts"), functools.partial(fault_command, None)),
    ),
    Peer("tabi-no-fault-again", tabi_version, {"a fault of other hosts": functools.partial(fault_command, None)}),
    Peer("tabi-no-rules", tabi_version, {"10 rules": functools.partial(policy_command, "", 0)}),
    Peer("tabi-10-rules", tabi_version, {"20,000 rules": functools.partial(policy_command, ALL_LIMITS, 10)}),
    Peer("tabi-unlimited", tabi_version, {"10 MB/s": functools.partial(policy_command, "", 0)}),
    Peer(
        "tabi-direct",
        tabi_version,
        dict.fromkeys(("through microsocks", "through tabi"), functools.partial(tabi_command, "socks5")),
    ),
    Peer(
        "tabi-address",
        tabi_version,
        dict.fromkeys(("a name", "two addresses"), functools.partial(names_command, '["127.0.0.1"]')),
        by_address=True,
    ),
    Peer(
        "microsocks",
        lambda: debian("microsocks", "microsocks"),
        dict.fromkeys(("socks5", "bulk through microsocks"), microsocks_command),
    ),
    Peer(
        "dante",
        lambda: debian("danted", "dante-server"),
        dict.fromkeys(("socks5", "bulk through microsocks"), dante_command),
    ),
    Peer(
        "asyncio-socks-server",
        lambda: pypi("asyncio-socks-server", "0.3.0"),
        {"socks5": lambda port, _: [f"{PYPI}/bin/asyncio_socks_server", "-H", "127.0.0.1", "-P", str(port)]},
    ),
    Peer(
        "pproxy",
        lambda: pypi("pproxy", "2.7.9"),
        {"socks5": lambda port, _: [f"{PYPI}/bin/pproxy", "-l", f"socks5://127.0.0.1:{port}"]},
    ),
    Peer("nginx", nginx_version, {"socks5+tls": nginx_command}, straight=True),
    Peer("squid", squid_version, {"looks into TLS": squid_command}, connect=True),
    Peer("sslsplit", lambda: debian("sslsplit", "sslsplit"), {"looks into TLS": sslsplit_command}, straight=True),
    Peer(
        "mitmdump",
        lambda: pypi("mitmproxy", "11.0.2", MITMPROXY),
        dict.fromkeys(("looks into TLS", "looks into HTTP/2"), mitmdump_command),
        by_address=True,
    ),
    Peer("tinyproxy", lambda: debian("tinyproxy", "tinyproxy-bin"), {"http": tinyproxy_command}),
]
