"""tabi: a proxy for SOCKS5, SOCKS4 and HTTP, and a toolkit. Python decides, the kernel carries.

    async with tabi.Server("socks5://127.0.0.1:0") as server:
        async with tabi.Proxy(server.url).connect("example.com", 80) as stream:
            ...

`tabi.wire` holds the protocol machines, without I/O; `tabi.errors` every exception.
"""

from tabi import errors, wire
from tabi.client import Proxy, create_connection
from tabi.config import Config
from tabi.egress.associate import Association
from tabi.egress.base import Egress
from tabi.egress.bind import Listener
from tabi.errors import (
    AuthError,
    ConfigError,
    ConnectTimeout,
    DialError,
    LimitExceeded,
    LocalProtocolError,
    PolicyDenied,
    ProtocolError,
    ProxyError,
    ProxyTimeout,
    RemoteProtocolError,
    TabiError,
)
from tabi.ingress.login import Login, User
from tabi.net.stream import Stream
from tabi.server.server import Server
from tabi.session import Decision, Session

__version__ = "0.1.0"
__all__ = [
    "Association",
    "AuthError",
    "Config",
    "ConfigError",
    "ConnectTimeout",
    "Decision",
    "DialError",
    "Egress",
    "LimitExceeded",
    "Listener",
    "LocalProtocolError",
    "Login",
    "PolicyDenied",
    "ProtocolError",
    "Proxy",
    "ProxyError",
    "ProxyTimeout",
    "RemoteProtocolError",
    "Server",
    "Session",
    "Stream",
    "TabiError",
    "User",
    "create_connection",
    "errors",
    "wire",
]
