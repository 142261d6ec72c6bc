"""tabi: a proxy for SOCKS5, SOCKS4 and HTTP, and a toolkit. Python decides, the kernel carries.

    async with tabi.Server("socks5://127.0.0.1:0") as server:
        async with tabi.Proxy(server.url).connect("example.com", 80) as stream:
            ...

`tabi.wire` holds the protocol machines, without I/O; `tabi.errors` every exception.
"""

TYPE_CHECKING = False  # not from typing, which takes as long to import as all else that the program needs to begin
if TYPE_CHECKING:
    from tabi import config, errors, wire
    from tabi.client import Opening, Proxy, create_connection
    from tabi.config import Config
    from tabi.egress.associate import Association
    from tabi.egress.base import Egress
    from tabi.egress.bind import Listener
    from tabi.egress.inspected import DialInspector
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
        TooLarge,
    )
    from tabi.ingress.login import Login, User
    from tabi.intercept.events import (
        ClientHelloInfo,
        Connection,
        DatagramInfo,
        QuicInfo,
        TlsInfo,
        WebSocketMessage,
    )
    from tabi.intercept.flow import Flow, FlowRequest, FlowResponse
    from tabi.intercept.headers import Headers
    from tabi.intercept.hooks import in_thread
    from tabi.net.dial import AddressFilter
    from tabi.net.stream import Stream
    from tabi.observe.observers import SessionObserver
    from tabi.parts.intercept import Intercept
    from tabi.relay.carrier import Carried
    from tabi.relay.datagram_inspector import Datagram, DatagramInspector, Emit
    from tabi.relay.stage import Stage
    from tabi.relay.tunnel import Tunnel
    from tabi.server.compiled import Compiled, compile_config
    from tabi.server.faults import LiveFault
    from tabi.server.server import Server
    from tabi.server.sessions import SessionInfo
    from tabi.session import Decision, Session, Sniffed
    from tabi.wire.dns_message import DnsInfo, DnsRecord

__version__ = "0.1.0"
__all__ = [
    "AddressFilter",
    "Association",
    "AuthError",
    "Carried",
    "ClientHelloInfo",
    "Compiled",
    "Config",
    "ConfigError",
    "ConnectTimeout",
    "Connection",
    "Datagram",
    "DatagramInfo",
    "DatagramInspector",
    "Decision",
    "DialError",
    "DialInspector",
    "DnsInfo",
    "DnsRecord",
    "Egress",
    "Emit",
    "Flow",
    "FlowRequest",
    "FlowResponse",
    "Headers",
    "Intercept",
    "LimitExceeded",
    "Listener",
    "LiveFault",
    "LocalProtocolError",
    "Login",
    "Opening",
    "PolicyDenied",
    "ProtocolError",
    "Proxy",
    "ProxyError",
    "ProxyTimeout",
    "QuicInfo",
    "RemoteProtocolError",
    "Server",
    "Session",
    "SessionInfo",
    "SessionObserver",
    "Sniffed",
    "Stage",
    "Stream",
    "TabiError",
    "TlsInfo",
    "TooLarge",
    "Tunnel",
    "User",
    "WebSocketMessage",
    "compile_config",
    "config",
    "create_connection",
    "errors",
    "in_thread",
    "wire",
]

_HOMES = {
    "AddressFilter": "net.dial",
    "Association": "egress.associate",
    "AuthError": "errors",
    "Carried": "relay.carrier",
    "ClientHelloInfo": "intercept.events",
    "Compiled": "server.compiled",
    "Config": "config",
    "ConfigError": "errors",
    "ConnectTimeout": "errors",
    "Connection": "intercept.events",
    "Datagram": "relay.datagram_inspector",
    "DatagramInfo": "intercept.events",
    "DatagramInspector": "relay.datagram_inspector",
    "Decision": "session",
    "DialError": "errors",
    "DialInspector": "egress.inspected",
    "DnsInfo": "wire.dns_message",
    "DnsRecord": "wire.dns_message",
    "Egress": "egress.base",
    "Emit": "relay.datagram_inspector",
    "Flow": "intercept.flow",
    "FlowRequest": "intercept.flow",
    "FlowResponse": "intercept.flow",
    "Headers": "intercept.headers",
    "Intercept": "parts.intercept",
    "LimitExceeded": "errors",
    "Listener": "egress.bind",
    "LiveFault": "server.faults",
    "LocalProtocolError": "errors",
    "Login": "ingress.login",
    "Opening": "client",
    "PolicyDenied": "errors",
    "ProtocolError": "errors",
    "Proxy": "client",
    "ProxyError": "errors",
    "ProxyTimeout": "errors",
    "QuicInfo": "intercept.events",
    "RemoteProtocolError": "errors",
    "Server": "server.server",
    "Session": "session",
    "Sniffed": "session",
    "SessionInfo": "server.sessions",
    "SessionObserver": "observe.observers",
    "Stage": "relay.stage",
    "Stream": "net.stream",
    "TabiError": "errors",
    "TlsInfo": "intercept.events",
    "TooLarge": "errors",
    "Tunnel": "relay.tunnel",
    "User": "ingress.login",
    "WebSocketMessage": "intercept.events",
    "compile_config": "server.compiled",
    "create_connection": "client",
    "in_thread": "intercept.hooks",
}
"""The module of each public name. It is imported when the name is first used, so that the program begins quickly."""


if not TYPE_CHECKING:  # so that type checkers know a wrong name

    def __getattr__(name: str) -> object:
        import importlib

        if name in ("config", "errors", "wire"):
            return importlib.import_module(f"tabi.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module 'tabi' has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(f"tabi.{_HOMES[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
