"""Mistakes that a type checker finds. Each line that has one says at its end which."""

import tabi
from tabi.config import LimitsConfig, Listen, RuleConfig, Timeouts
from tabi.wire import Address, ClientMachine, Reply, ReplyCode

TIMEOUTS = Timeouts(idle="5 min")  # wrong: arg-type
LIMITS = LimitsConfig(bandwidth="10 MB/s", connect_rate=20)  # wrong: arg-type arg-type
OVER = LimitsConfig(over="queue")  # wrong: arg-type
RULE = RuleConfig("permit")  # wrong: arg-type
KEY = Timeouts(iddle=30.0)  # wrong: call-arg
CONFIG = tabi.Config(listen=Listen("socks5://127.0.0.1:0"))  # wrong: arg-type
NAME = tabi.Sever("socks5://127.0.0.1:0")  # wrong: attr-defined


def old_authenticate(username: str, password: str, client: Address) -> str | None:
    """The form of before."""
    return username if password else None


def authenticate(login: tabi.Login) -> bool:
    """Says yes or no, and not who it is."""
    return login.username == "alice"


def decide(session: tabi.Session) -> str:
    """Says it in a word."""
    return "deny"


def on_close(user: str, octets: int) -> None:
    """Wants something else."""


class Nothing:
    """Has none of the methods that it would need."""


class Shout(tabi.DatagramInspector):
    """Takes the wrong arguments."""

    def inspect(self, data: bytes) -> bytes:  # wrong: override
        return data.upper()


class Out(tabi.Egress):
    """Gives no stream."""

    async def open(  # wrong: override
        self, destination: Address, address_filter: tabi.AddressFilter, session: tabi.Session | None = None
    ) -> int:
        return destination.port


tabi.Server(authenticate=old_authenticate)  # wrong: arg-type
tabi.Server(authenticate=authenticate)  # wrong: arg-type
tabi.Server(decide=decide)  # wrong: arg-type
tabi.Server(on_close=on_close)  # wrong: arg-type
tabi.Server(on_session=print)  # wrong: call-arg
tabi.Server(egresses={"out": Nothing()})  # wrong: dict-item
tabi.Server(datagrams=Nothing())  # wrong: arg-type
tabi.Server(dials=Nothing())  # wrong: arg-type
tabi.Server(observers=[Nothing()])  # wrong: list-item
tabi.Server(users=["alice"])  # wrong: arg-type
tabi.Decision("permit")  # wrong: arg-type
tabi.Proxy(1080)  # wrong: arg-type
tabi.create_connection("example.com:80")  # wrong: arg-type


async def use(proxy: tabi.Proxy, tunnel: tabi.Tunnel, emit: tabi.Emit) -> None:
    """Calls with the wrong arguments."""
    stream = await proxy.connect("example.com", "80")  # wrong: arg-type
    await stream.send_all("text")  # wrong: arg-type
    emit("text")  # wrong: arg-type
    await tunnel.relay(up=[Nothing()])  # wrong: list-item
    async with proxy.associate() as association:
        await association.send(b"data", "example.com:53")  # wrong: arg-type
    ClientMachine().send(Reply(ReplyCode.SUCCEEDED))  # wrong: arg-type
