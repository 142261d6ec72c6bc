"""Chromium without a window, driven by its DevTools protocol: pages, clicks, keys, pictures."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from processes import PATIENCE, environment, need, wait_for

COMPLAINTS = ("Runtime.exceptionThrown", "Log.entryAdded")
"""Events that say that a page does something wrong."""


class Browser:
    """One tab.

    ``complaints`` has what went wrong in its pages: exceptions, and what their policy forbids.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.number = 0
        self.complaints: list[Any] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """Have something done; see https://chromedevtools.github.io/devtools-protocol/."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        deadline = time.monotonic() + PATIENCE
        while True:
            message = json.loads(self.socket.recv(timeout=max(0.1, deadline - time.monotonic())))
            if message.get("method") in COMPLAINTS:
                self.complaints.append(message["params"])
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]

    def open(self, url: str) -> None:
        """Go to a page."""
        self.call("Page.navigate", url=url)
        wait_for(lambda: self.run("document.readyState") == "complete", "the page")

    def run(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Wait until it is true."""
        return wait_for(lambda: self.run(expression), expression)

    def click(self, selector: str) -> None:
        """Press the mouse's button on an element."""
        quoted = json.dumps(selector)
        self.wait(f"!!document.querySelector({quoted})")
        self.run(f"document.querySelector({quoted}).scrollIntoView({{block: 'center'}})")
        where: list[float] = []

        def over() -> bool:
            box = "(({x, y, width, height}) => [x + width / 2, y + height / 2])"
            where[:] = self.run(f"{box}(document.querySelector({quoted}).getBoundingClientRect())")
            self.move(*where)
            return bool(self.run(f"document.querySelector({quoted}).matches(':hover')"))

        wait_for(over, f"the pointer to be over {selector}")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1)
        self.move(0, 0)

    def move(self, x: float, y: float) -> None:
        """Move the mouse."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def type(self, selector: str, text: str) -> None:
        """Write into a field, in place of what it has."""
        self.run(f"(one => {{ one.focus(); one.select(); }})(document.querySelector({json.dumps(selector)}))")
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press a key: Tab, Enter, Escape."""
        code = {"Tab": 9, "Enter": 13, "Escape": 27}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def picture(self, path: Path) -> None:
        """Write a picture of what is seen, as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start one, with its files in a folder."""
    options = ["--no-sandbox", "--disable-gpu", "--no-proxy-server", "--window-size=1200,800"]
    options += ["--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}", "about:blank"]
    said = folder / "chromium.stderr"
    with said.open("wb") as file:
        env = environment() | {"HOME": str(folder)}
        command = [need("chromium-headless-shell"), *options]
        process = subprocess.Popen(command, stdout=file, stderr=file, env=env, process_group=0)
    try:
        port = int(wait_for(lambda: said.read_text().partition("ws://127.0.0.1:")[2].partition("/")[0], "its port"))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=PATIENCE) as answer:
            url = next(page["webSocketDebuggerUrl"] for page in json.load(answer) if page["type"] == "page")
        with connect(url, max_size=None, compression=None) as socket:
            yield Browser(socket)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # it starts others
        process.wait(PATIENCE)
