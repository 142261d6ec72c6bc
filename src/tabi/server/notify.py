"""Tells the service manager the state of the server, if it asks for that: sd_notify(3), for Type=notify."""

from __future__ import annotations

import logging
import os
import socket
import time

log = logging.getLogger("tabi")

PATIENCE = 1.0
"""Seconds that a manager which does not read may hold us up."""


def notify(state: str) -> None:
    """Send a state such as ``READY=1``. Without a manager nothing happens; a failure is logged."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE)
            sock.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)
    except OSError as exc:
        log.warning("NOTIFY_SOCKET: %s", exc)


def notify_reloading() -> None:
    """Say that another configuration is taken, as Type=notify-reload wants it; ``READY=1`` says that it was."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
