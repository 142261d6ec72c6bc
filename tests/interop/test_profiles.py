"""curl through each profile of a bad network, as it comes with tabi."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from origin import Origin, origin
from processes import PATIENCE, Serve, need, serve, wait_for
from tabi.config.faults import PROFILES, make_fault

pytestmark = pytest.mark.interop

PAGE = b"x" * 12_000


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A port through which each profile has a host of its name."""
    folder = tmp_path_factory.mktemp("profiles")
    hosts = ", ".join(f'"{name}.test" = ["127.0.0.1"]' for name in [*PROFILES, "good"])
    entries = "".join(f'[[distort]]\nhosts = ["{name}.test"]\nfault = "{name}"\n' for name in PROFILES)
    path = folder / "tabi.toml"
    path.write_text(f"[resolver]\nhosts = {{ {hosts} }}\n{entries}")
    with serve(folder, "-c", path, "-l", "mixed://127.0.0.1:0") as running:
        yield running


@pytest.fixture(scope="module")
def page() -> Iterator[Origin]:
    """What is fetched."""
    with origin({"/": PAGE}) as running:
        yield running


def fetch(bad: Serve, page: Origin, name: str, scheme: str) -> tuple[int, bytes, float]:
    """Fetch it: curl's exit code, what it got, and after how many seconds."""
    options = ("--silent", "--max-time", "20", "--noproxy", "", "--write-out", " %{time_total}")
    command = [need("curl"), *options, "--proxy", f"{scheme}://{bad.address}", page.url("/", f"{name}.test")]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE)
    body, _, seconds = done.stdout.rpartition(b" ")
    return done.returncode, body, float(seconds)


@pytest.mark.parametrize("scheme", ["socks5h", "http"])
@pytest.mark.parametrize("name", [name for name in PROFILES if name != "offline"])
def test_curl_gets_the_page_in_the_time_of_its_network(bad: Serve, page: Origin, name: str, scheme: str) -> None:
    """By CONNECT of SOCKS and by a request that is forwarded: a round trip, and the octets at their rate."""
    fault = make_fault(PROFILES[name])
    least = fault.up.latency + fault.down.latency - fault.up.jitter - fault.down.jitter
    code, body, seconds = fetch(bad, page, name, scheme)
    assert (code, body) == (0, PAGE)
    assert seconds > least + (len(PAGE) - 4_000) / fault.down.bandwidth


def test_offline_is_a_network_that_is_unreachable(bad: Serve, page: Origin) -> None:
    """At once; another host on the same port does not notice."""
    assert fetch(bad, page, "offline", "socks5h")[:2] == (97, b"")  # CURLE_PROXY
    code, body, _ = fetch(bad, page, "good", "socks5h")
    assert (code, body) == (0, PAGE)
    told = wait_for(lambda: [line for line in bad.sessions(1) if line["host"] == "offline.test"], "its line in the log")
    assert (told[0]["reply"], told[0]["close"]) == (3, "error")
    assert told[0]["error"].endswith("refused by distort[8]")
