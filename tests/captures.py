"""A small reader of captures: what each TCP connection's ends and each UDP sender have sent, out of pcap and pcapng."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

PCAP = {b"\xd4\xc3\xb2\xa1": "<", b"\xa1\xb2\xc3\xd4": ">", b"\x4d\x3c\xb2\xa1": "<", b"\xa1\xb2\x3c\x4d": ">"}
ETHERNET, RAW, LINUX_COOKED, NULL = 1, 101, 113, 0
TCP, UDP = 6, 17
VLANS = (b"\x81\x00", b"\x88\xa8")


class Flow(NamedTuple):
    """One direction."""

    source: str
    source_port: int
    target: str
    target_port: int


def packets(path: Path) -> Iterator[tuple[int, bytes]]:
    """The link type and the octets of each packet."""
    data = path.read_bytes()
    if data[:4] in PCAP:
        order = PCAP[data[:4]]
        link, at = struct.unpack_from(order + "I", data, 20)[0], 24
        while at + 16 <= len(data):
            size = struct.unpack_from(order + "I", data, at + 8)[0]
            yield link, data[at + 16 : at + 16 + size]
            at += 16 + size
        return
    links: list[int] = []
    order, at = "<", 0
    while at + 12 <= len(data):
        kind = data[at : at + 4]
        if kind == b"\x0a\x0d\x0d\x0a":
            order, links = "<" if data[at + 8 : at + 12] == b"\x4d\x3c\x2b\x1a" else ">", []
        number, size = struct.unpack_from(order + "II", data, at)
        if number == 1:  # an interface
            links.append(struct.unpack_from(order + "H", data, at + 8)[0])
        elif number == 6:  # an enhanced packet
            interface, _, _, length = struct.unpack_from(order + "IIII", data, at + 8)
            yield links[interface], data[at + 28 : at + 28 + length]
        at += size


def segments(path: Path, protocol: int) -> Iterator[tuple[Flow, bytes]]:
    """What is behind the IP header of each packet of a protocol, with the flow that it belongs to."""
    for link, frame in packets(path):
        packet = frame
        if link == ETHERNET:
            at = 12
            while frame[at : at + 2] in VLANS:
                at += 4
            packet = frame[at + 2 :]
        elif link == LINUX_COOKED:
            packet = frame[16:]
        elif link == NULL:
            packet = frame[4:]
        if not packet or packet[0] >> 4 not in (4, 6):
            continue
        if packet[0] >> 4 == 4:
            found, addresses, begin = packet[9], (packet[12:16], packet[16:20]), 4 * (packet[0] & 15)
            packet = packet[: int.from_bytes(packet[2:4]) or None]
        else:
            found, addresses, begin = packet[6], (packet[8:24], packet[24:40]), 40
            packet = packet[: 40 + int.from_bytes(packet[4:6])]
        if found == protocol and len(packet) >= begin + 8:
            ports = struct.unpack_from("!HH", packet, begin)
            source, target = (str(ip_address(address)) for address in addresses)
            yield Flow(source, ports[0], target, ports[1]), packet[begin:]


def tcp_streams(path: Path) -> dict[Flow, bytes]:
    """The octets of each direction of each connection, in order; up to the first gap."""
    parts: dict[Flow, dict[int, bytes]] = {}
    begins: dict[Flow, int] = {}
    for flow, segment in segments(path, TCP):
        sequence, payload = int.from_bytes(segment[4:8]), segment[4 * (segment[12] >> 4) :]
        if segment[13] & 2:  # SYN
            begins[flow] = (sequence + 1) % 2**32
        elif payload:
            parts.setdefault(flow, {}).setdefault(sequence, payload)
    streams = {}
    for flow, found in parts.items():
        begin = begins.get(flow, next(iter(found)))
        octets = b""
        for sequence in sorted(found, key=lambda sequence: (sequence - begin + 2**31) % 2**32):
            skip = (begin + len(octets) - sequence + 2**31) % 2**32 - 2**31
            if skip < 0:
                break
            octets += found[sequence][skip:]
        streams[flow] = octets
    return streams


def udp_datagrams(path: Path) -> dict[Flow, list[bytes]]:
    """The payloads of each direction."""
    found: dict[Flow, list[bytes]] = {}
    for flow, segment in segments(path, UDP):
        found.setdefault(flow, []).append(segment[8:])
    return found
