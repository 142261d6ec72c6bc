"""The pieces that a proxy is composed of, by hand. `tabi.Server` makes its own listeners of the same ones.

    proxy = Mixed(Socks5(Connect(Direct(timeout=30)), users={"alice": "secret"}), Http(users={"bob": "hunter2"}))
    async with Listener("127.0.0.1:1080", proxy) as listener:
        await listener.serve_forever()

    Listener -> ProxyHeader -> Tls -> Mixed -> Socks5, Socks4, Http -> Connect, Bind, UdpAssociate -> Direct, Through

Pieces are values: they are made without a loop, and checked at once. What is of a wrong type raises TypeError, and what
has a wrong value `tabi.ConfigError`.
"""

TYPE_CHECKING = False  # not from typing, as in the package above
if TYPE_CHECKING:
    from tabi.config import GuardConfig, LimitsConfig, RuleConfig, Timeouts
    from tabi.ingress.auth_methods import AuthMethod, Refused
    from tabi.ingress.conversation import Ingress, MachineConversation
    from tabi.ingress.refusal import Refusal, login_refused
    from tabi.parts.base import Piece, Relay, Running
    from tabi.parts.commands import (
        Bind,
        Command,
        Connect,
        Direct,
        EgressPiece,
        Pool,
        Resolve,
        ResolvePtr,
        Through,
        UdpAssociate,
    )
    from tabi.parts.listener import Listener, Policy
    from tabi.parts.protocols import Http, Mixed, ProxyHeader, Socks4, Socks5, Tls

__all__ = [
    "AuthMethod",
    "Bind",
    "Command",
    "Connect",
    "Direct",
    "EgressPiece",
    "GuardConfig",
    "Http",
    "Ingress",
    "LimitsConfig",
    "Listener",
    "MachineConversation",
    "Mixed",
    "Piece",
    "Policy",
    "Pool",
    "ProxyHeader",
    "Refusal",
    "Refused",
    "Relay",
    "Resolve",
    "ResolvePtr",
    "RuleConfig",
    "Running",
    "Socks4",
    "Socks5",
    "Through",
    "Timeouts",
    "Tls",
    "UdpAssociate",
    "login_refused",
]

_HOMES = {
    "AuthMethod": "ingress.auth_methods",
    "Bind": "parts.commands",
    "Command": "parts.commands",
    "Connect": "parts.commands",
    "Direct": "parts.commands",
    "EgressPiece": "parts.commands",
    "GuardConfig": "config",
    "Http": "parts.protocols",
    "Ingress": "ingress.conversation",
    "LimitsConfig": "config",
    "Listener": "parts.listener",
    "MachineConversation": "ingress.conversation",
    "Mixed": "parts.protocols",
    "Piece": "parts.base",
    "Policy": "parts.listener",
    "Pool": "parts.commands",
    "ProxyHeader": "parts.protocols",
    "Refusal": "ingress.refusal",
    "Refused": "ingress.auth_methods",
    "Relay": "parts.base",
    "Resolve": "parts.commands",
    "ResolvePtr": "parts.commands",
    "RuleConfig": "config",
    "Running": "parts.base",
    "Socks4": "parts.protocols",
    "Socks5": "parts.protocols",
    "Through": "parts.commands",
    "Timeouts": "config",
    "Tls": "parts.protocols",
    "UdpAssociate": "parts.commands",
    "login_refused": "ingress.refusal",
}
"""The module of each name. It is imported when the name is first used: a server needs pieces, a listener a server."""


if not TYPE_CHECKING:  # so that type checkers know a wrong name

    def __getattr__(name: str) -> object:
        import importlib

        if name not in _HOMES:
            raise AttributeError(f"module 'tabi.parts' has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(f"tabi.{_HOMES[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
