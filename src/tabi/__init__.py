"""tabi: a proxy for SOCKS5, SOCKS4 and HTTP, and a toolkit. Python decides, the kernel carries.

    async with tabi.Server("socks5://127.0.0.1:0") as server:
        async with tabi.Proxy(server.url).connect("example.com", 80) as stream:
            ...

`tabi.wire` holds the protocol machines, without I/O; `tabi.errors` every exception.
"""

TYPE_CHECKING = False  # not from typing, which takes as long to import as all else that the program needs to begin
if TYPE_CHECKING:
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
    from tabi.server.server import Server
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
    "Stream",
    "TabiError",
    "errors",
    "wire",
]

_HOMES = {
    "Association": "egress.associate",
    "AuthError": "errors",
    "Config": "config",
    "ConfigError": "errors",
    "Decision": "session",
    "DialError": "errors",
    "LimitExceeded": "errors",
    "Listener": "egress.bind",
    "LocalProtocolError": "errors",
    "PolicyDenied": "errors",
    "ProtocolError": "errors",
    "Proxy": "client",
    "ProxyError": "errors",
    "RemoteProtocolError": "errors",
    "Server": "server.server",
    "Session": "session",
    "Stream": "net.stream",
    "TabiError": "errors",
}
"""The module of each public name. It is imported when the name is first used, so that the program begins quickly."""


if not TYPE_CHECKING:  # so that type checkers know a wrong name

    def __getattr__(name: str) -> object:
        import importlib

        if name in ("errors", "wire"):
            return importlib.import_module(f"tabi.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module 'tabi' has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(f"tabi.{_HOMES[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
