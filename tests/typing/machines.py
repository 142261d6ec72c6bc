"""The protocol machines, without I/O."""

from ipaddress import IPv4Address

from tabi import wire
from tabi.wire import NEED_DATA, SNIFF_SIZE, Address, Host, State


def ask(destination: Address) -> bytes:
    """A client of SOCKS5 and a server, without a network between them."""
    client, server = wire.ClientMachine(), wire.ServerMachine()
    server.receive_data(
        client.send(wire.Greeting(bytes([wire.Method.USERNAME_PASSWORD, wire.Method.NO_AUTHENTICATION])))
    )
    greeting: object = server.next_event()
    assert isinstance(greeting, wire.Greeting)
    client.receive_data(server.send(wire.MethodSelection(wire.Method.USERNAME_PASSWORD)))
    selection: object = client.next_event()
    assert isinstance(selection, wire.MethodSelection)
    server.receive_data(client.send(wire.Credentials(b"alice", b"secret")))
    client.receive_data(server.send(wire.CredentialsReply(0)))
    server.receive_data(client.send(wire.Request(wire.Command.CONNECT, destination)))
    client.receive_data(server.send(wire.Reply(wire.ReplyCode.SUCCEEDED, Address(IPv4Address("192.0.2.1"), 1))))
    if client.next_event() is NEED_DATA or client.state is not State.OPEN:
        return b""
    return client.trailing_data


def negotiate(machine: wire.ServerMachine) -> bytes:
    """A message of another method."""
    message: object = machine.next_event()
    return machine.send(wire.MethodMessage(message.octets)) if isinstance(message, wire.MethodMessage) else b""


def ask4(destination: Address) -> bytes:
    """SOCKS4."""
    client, server = wire.ClientMachine4(), wire.ServerMachine4()
    server.receive_data(client.send(wire.Request4(wire.Command.CONNECT, destination, b"alice")))
    return server.send(wire.Reply4(wire.reply4_code(wire.ReplyCode.SUCCEEDED))) + bytes([wire.ReplyCode4.GRANTED])


def ask_http(destination: Address) -> int | None:
    """CONNECT."""
    machine = wire.ConnectMachine()
    request: bytes = machine.send(wire.ConnectRequest(destination, wire.Credentials(b"alice", b"secret")))
    machine.receive_data(request)
    answer: object = machine.next_event()
    return answer.status if isinstance(answer, wire.ConnectAnswer) else None


def name(data: bytes) -> str:
    """What a connection begins with."""
    found = wire.sniff(data[:SNIFF_SIZE])
    return found.value if isinstance(found, wire.Protocol) else "not known yet"


def heads(data: bytes) -> bytes:
    """A head of HTTP, read and changed."""
    found = wire.http.parse_request(data)
    if found is None:
        return b""
    head, size = found
    print(head.method, head.target, size)
    return wire.http.encode_request(wire.http.rewrite_request(head))


def headers(data: bytes) -> tuple[Host, bytes]:
    """Those of datagrams and of the PROXY protocol."""
    frag, address, offset = wire.datagram.decode_header(data)
    print(frag, wire.datagram.encode_header(address))
    found = wire.proxy_protocol.decode_header(data)
    if found is not None:
        header: wire.ProxyHeader = found[0]
        print(header.source, header.transport is wire.Transport.STREAM, wire.TlvType.ALPN, wire.SslInfo)
    return address.host, data[offset:]


DESTINATION: Address = wire.parse_address("example.com:443")
