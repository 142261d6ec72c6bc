"""What several of the real programs are tried with: certificates, and a port for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from origin import Certificates, make_certificates
from processes import Serve, serve


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """The authority's, the origin's, the proxy's and a client's."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A mixed port with a user, for all tests of a file."""
    with serve(tmp_path_factory.mktemp("proxy"), "-l", "mixed://127.0.0.1:0", "-u", "alice:secret") as running:
        yield running
