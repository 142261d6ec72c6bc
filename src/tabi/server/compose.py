"""What a listener speaks, composed once when it opens: each layer wraps the next, a session pays for those it meets.

PROXY header -> TLS -> mixed -> socks5, socks4
"""

from __future__ import annotations

from tabi.config import Config, Listen
from tabi.egress.direct import Direct, Egress
from tabi.egress.proxy_header import SendProxyHeader
from tabi.ingress.authenticate import Authenticate
from tabi.ingress.conversation import Commands, Ingress
from tabi.ingress.forward import Forwarding
from tabi.ingress.http import HttpIngress
from tabi.ingress.mixed import MixedIngress
from tabi.ingress.proxy_header import ProxyHeaderIngress
from tabi.ingress.socks4 import Socks4Ingress
from tabi.ingress.socks5 import Socks5Ingress
from tabi.net.dial import Dialer
from tabi.wire.sniff import Protocol


def make_ingress(
    listen: Listen, commands: Commands, forwarding: Forwarding, authenticate: Authenticate | None, required: bool
) -> Ingress:
    """Compose the ways in of one listener.

    Args:
        listen: what it takes.
        commands: carry out what clients ask for.
        forwarding: what HTTP requests need beside that.
        authenticate: asked for every user name and password; None where there are none.
        required: whether clients must be users.
    """
    url = listen.parsed
    inside = make_protocols(commands, forwarding, authenticate, required)
    ingress: Ingress = MixedIngress(inside) if url.protocol == "mixed" else inside[Protocol(url.protocol)]
    return ProxyHeaderIngress(listen.proxies, ingress) if listen.proxy_protocol else ingress


def make_protocols(
    commands: Commands, forwarding: Forwarding, authenticate: Authenticate | None, required: bool
) -> dict[Protocol, Ingress]:
    """What speaks each protocol."""
    http = HttpIngress(commands, forwarding, authenticate, required)
    return {
        Protocol.SOCKS5: Socks5Ingress(commands, authenticate, required),
        Protocol.SOCKS4: Socks4Ingress(commands, required),
        Protocol.HTTP: http,
        Protocol.HTTP2: http,  # which says that it does not speak that version
    }


def make_egress(config: Config, dialer: Dialer) -> Egress:
    """Compose the way out."""
    direct = Direct(dialer)
    settings = config.egress.get("direct")
    version = settings.send_proxy_protocol if settings else 0
    return SendProxyHeader(direct, version) if version else direct
