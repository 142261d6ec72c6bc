"""A SOCKS5 proxy that looks into TLS: it shows each answer, and says in it that it was here.

Run it: tabi ca init, and python examples/mitm.py 1080
Use it: curl --socks5-hostname 127.0.0.1:1080 --cacert "$(tabi ca show --path)" https://example.com/
"""

import asyncio
import contextlib
import sys

import tabi


class Watch:
    def response(self, flow: tabi.Flow) -> None:
        if flow.response is not None:
            print(flow.request.method, flow.request.url, flow.response.status, flush=True)
            flow.response.headers["X-Seen-By"] = "tabi"


async def main(port: str = "0") -> None:
    async with tabi.Server(f"socks5://127.0.0.1:{port}", intercept=[{"hosts": ["*"]}], hooks=[Watch()]) as server:
        print(server.url, flush=True)
        await server.serve_forever()


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main(*sys.argv[1:]))
