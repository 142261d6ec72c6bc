"""The client: TCP connections, listening and datagrams through a proxy, or through several in a row.

    proxy = tabi.Proxy("socks5://alice:secret@127.0.0.1:1080")
    async with proxy.connect("example.com", 80) as stream:
        await stream.send_all(b"GET / HTTP/1.0\\r\\nHost: example.com\\r\\n\\r\\n")
        print(await stream.receive())
    async with proxy.bind(peer="192.0.2.9") as listener:
        print(listener.address)
        stream = await listener.accept()
    async with proxy.associate() as association:
        await association.send(b"question", ("192.0.2.1", 53))
        data, address = await association.receive()

`proxy.py` has the class, `opening.py` what its methods return, `environment.py` the variables ALL_PROXY and NO_PROXY,
`blocking.py` the client for programs without asyncio.
"""

from tabi.client.blocking import create_connection
from tabi.client.opening import Opening
from tabi.client.proxy import TIMEOUT, Proxy

__all__ = ["TIMEOUT", "Opening", "Proxy", "create_connection"]
