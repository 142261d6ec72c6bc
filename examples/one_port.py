"""http, https, socks5 and socks5h on one port. The certificate is its own, for 127.0.0.1 and one day (openssl).

Run it: python examples/one_port.py 1080
Use it: curl --proxy socks5h://127.0.0.1:1080 http://example.com/ (or socks5://, http://)
        curl --proxy https://127.0.0.1:1080 --proxy-cacert FILE http://example.com/
"""

import asyncio
import contextlib
import subprocess
import sys
import tempfile

import tabi
from tabi.config import Listen, Log, Tls

OPENSSL = "openssl req -x509 -newkey ed25519 -noenc -days 1 -subj /CN=proxy -addext subjectAltName=IP:127.0.0.1"


async def main(tls: Tls, port: str = "0") -> None:
    listen = [Listen(f"mixed://127.0.0.1:{port}", tls=tls)]
    async with tabi.Server(config=tabi.Config(listen=listen, log=Log(access="none"))) as server:
        print(server.url_for("https"), "certificate:", tls.certificate, flush=True)
        await server.serve_forever()


with contextlib.suppress(KeyboardInterrupt), tempfile.TemporaryDirectory() as folder:
    made = Tls(f"{folder}/proxy.pem", f"{folder}/proxy.key")
    subprocess.run([*OPENSSL.split(), "-out", made.certificate, "-keyout", made.key], check=True, capture_output=True)
    asyncio.run(main(made, *sys.argv[1:]))
