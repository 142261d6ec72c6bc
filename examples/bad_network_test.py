"""How a program lives with a bad network. pytest has the fixtures as soon as tabi is installed.

Run it: pytest examples/bad_network_test.py
"""

import urllib.request

import pytest

from tabi.testing import Origin, ProxyServer


def fetch(proxy: ProxyServer, url: str, timeout: float = 10) -> object:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": proxy.url_for("http")}))
    with opener.open(url, timeout=timeout) as answer:
        return answer.read()


@pytest.mark.parametrize("network", ["4g", "lossy-wifi", "satellite"])
def test_it_works_on_a_slow_network(tabi_proxy: ProxyServer, tabi_origin: Origin, network: str) -> None:
    with tabi_proxy.fault(network, hosts=[tabi_origin.address.host]) as fault:
        assert fetch(tabi_proxy, tabi_origin.url) == b"hello from /"
        assert fault.chosen == 1


def test_it_gives_up_and_tries_again(tabi_proxy: ProxyServer, tabi_origin: Origin) -> None:
    with tabi_proxy.fault(stall=True), pytest.raises(TimeoutError):
        fetch(tabi_proxy, tabi_origin.url, timeout=0.2)
    assert fetch(tabi_proxy, tabi_origin.url) == b"hello from /"
