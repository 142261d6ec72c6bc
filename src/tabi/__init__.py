"""tabi: a proxy for SOCKS5, SOCKS4 and HTTP, and a toolkit. Python decides, the kernel carries.

    async with tabi.Server("socks5://127.0.0.1:0") as server:
        async with tabi.Proxy(server.url).connect("example.com", 80) as stream:
            ...

`tabi.wire` holds the protocol machines, without I/O; `tabi.errors` every exception.
"""

from tabi import errors, wire
from tabi.client import Proxy
from tabi.config import Config
from tabi.egress.associate import Association
from tabi.egress.bind import Listener
from tabi.errors import (
    AuthError,
    ConfigError,
    DialError,
    LimitExceeded,
    LocalProtocolError,
    PolicyDenied,
    ProtocolError,
    ProxyError,
    RemoteProtocolError,
    TabiError,
)
from tabi.net.stream import Stream
from tabi.observe.observers import SessionObserver
from tabi.server.server import Server
from tabi.server.sessions import SessionInfo
from tabi.session import Decision, Session

__version__ = "0.1.0"
__all__ = [
    "Association",
    "AuthError",
    "Config",
    "ConfigError",
    "Decision",
    "DialError",
    "LimitExceeded",
    "Listener",
    "LocalProtocolError",
    "PolicyDenied",
    "ProtocolError",
    "Proxy",
    "ProxyError",
    "RemoteProtocolError",
    "Server",
    "Session",
    "SessionInfo",
    "SessionObserver",
    "Stream",
    "TabiError",
    "errors",
    "wire",
]
