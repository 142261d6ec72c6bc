"""tabi: a SOCKS5 proxy and toolkit. Python decides, the kernel carries.

    async with tabi.Server("socks5://127.0.0.1:0") as server:
        async with tabi.Proxy(server.url).connect("example.com", 80) as stream:
            ...

`tabi.wire` holds the protocol machines, without I/O.
"""

from tabi import wire
from tabi.config import Config
from tabi.server.server import Server
from tabi.session import Session

__version__ = "0.1.0"
__all__ = ["Config", "Server", "Session", "wire"]
