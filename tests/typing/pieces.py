"""A program that composes a proxy by hand, with pieces of its own, and a test that uses the plugin."""

from collections.abc import Callable, Sequence

import tabi
from tabi.parts import (
    AuthMethod,
    Bind,
    Command,
    Connect,
    Direct,
    EgressPiece,
    GuardConfig,
    Http,
    Ingress,
    LimitsConfig,
    Listener,
    MachineConversation,
    Mixed,
    Piece,
    Policy,
    Pool,
    ProxyHeader,
    Refusal,
    Refused,
    Relay,
    Resolve,
    ResolvePtr,
    RuleConfig,
    Running,
    Socks4,
    Socks5,
    Through,
    Timeouts,
    Tls,
    UdpAssociate,
    login_refused,
)
from tabi.testing import Origin, OriginRequest, ProxyFault, ProxyServer, Service, Upstream
from tabi.wire import MethodMessage


class Token:
    """A method of authentication."""

    method = 0x80

    async def authenticate(self, conversation: MachineConversation) -> Refused | None:
        conversation.machine.negotiate(lambda octets: 4)
        said = await conversation.next_message()
        if not isinstance(said, MethodMessage) or said.octets != b"sesa":
            refusal: Refusal = login_refused("a wrong token")
            return Refused(MethodMessage(b"!"), refusal)
        conversation.send(MethodMessage(b"+"))
        conversation.machine.negotiated()
        conversation.session.user = "bearer"
        return None


class CountingIngress:
    """What the piece below is built into."""

    def __init__(self, inner: Ingress) -> None:
        self.inner = inner
        self.protocol = inner.protocol
        self.count = 0

    async def serve(self, client: tabi.Stream, session: tabi.Session) -> None:
        self.count += 1
        await self.inner.serve(client, session)


class Counted(Piece):
    """A piece around another one."""

    def __init__(self, inner: Piece) -> None:
        self.inner = inner

    def inside(self) -> Sequence[Piece]:
        return (self.inner,)

    def build(self, running: Running) -> Ingress:
        return CountingIngress(self.inner.build(running))


method: AuthMethod = Token()
commands: list[Command] = [
    Connect(Direct(timeout=30), Relay(idle=60, half_closed=10)),
    Connect(carrier=tabi.Intercept({"hosts": ["*.example.com"], "verify": False})),
    Bind(timeout=60),
    UdpAssociate(),
    Resolve(),
    ResolvePtr(),
]
egresses: list[EgressPiece] = [Through("socks5://192.0.2.1:1080"), Pool("http://192.0.2.2:3128", "socks5://192.0.2.3")]


async def main() -> None:
    """Everything on one port, and TLS on another."""
    plain = Mixed(Socks5(*commands, methods=[method]), Socks4(), Http(Connect(egresses[0]), users={"bob": "hunter2"}))
    policy = Policy(rules=[RuleConfig("deny", ports=[25])], limits=LimitsConfig(connections=100), guard=GuardConfig())
    balanced = ProxyHeader(Counted(Tls(plain, "server.pem", "server.key")), ["192.0.2.0/24"])
    async with Listener("127.0.0.1:0", balanced, policy=policy, timeouts=Timeouts(idle=30.0)) as listener:
        print(listener.address.port, [info.user for info in listener.sessions()])


def answer(request: OriginRequest) -> tuple[int, bytes]:
    """What an origin says."""
    return 200, request.body


def test_all(tabi_proxy_factory: Callable[..., ProxyServer], tabi_upstream: Upstream) -> None:
    """Fixtures and classes."""
    with tabi_proxy_factory().fault("3g", latency="200ms") as fault:
        network: ProxyFault = fault
        network.change(jitter="50ms")
    services: list[Service] = [tabi_proxy_factory(users={"alice": "secret"}), tabi_upstream.refuse(5)]
    with Origin(answer) as origin:
        print(origin.address.port, origin.requests[0].target, [service.start() for service in services])
