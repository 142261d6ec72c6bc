"""`tabi ca`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from tabi.cli.help import Group
from tabi.errors import ConfigError, printable
from tabi.intercept.packages import need_packages

if TYPE_CHECKING:
    from cryptography import x509


class Ca(Group):
    """The commands of an authority."""

    def invoke(self, ctx: click.Context) -> object:
        """Run one of them, where there is what they need."""
        need_packages("tabi ca")
        return super().invoke(ctx)


@click.group(
    cls=Ca,
    no_args_is_help=True,
    epilog="""\b
    Make one:          tabi ca init
    Have it trusted:   tabi ca show
    Try it:            curl --cacert "$(tabi ca show --path)" -x socks5h://127.0.0.1:1080 https://example.com/""",
)
def ca() -> None:
    """Make and show the authority that signs for intercepted hosts.

    Who trusts it lets whoever has its key read and change all that is sent by TLS: the key never leaves this machine.

    Example:  tabi ca init && tabi ca show
    """


folder = click.option(
    "--dir", "folder", metavar="DIR", help="Where ca.crt and ca.key are. Default: ~/.local/share/tabi."
)


@ca.command()
@folder
def init(folder: str | None) -> int:
    """Make an authority: ca.crt, and ca.key, which only you can read.

    It never overwrites one that is there.

    Example:  tabi ca init
    """
    from tabi.intercept.authority import Authority

    certificate = path_of(folder)
    made = Authority.make(os.path.dirname(certificate))
    print_facts(made.certificate, certificate)
    print("\nHow to trust it:  tabi ca show")
    return 0


@ca.command()
@folder
@click.option("--path", "only_path", is_flag=True, help="Print only the path of the certificate.")
def show(folder: str | None, only_path: bool) -> int:
    """Show an authority's certificate, and how to trust it.

    Example:  curl --cacert "$(tabi ca show --path)" https://example.com/
    """
    from tabi.intercept.authority import FILES, Authority
    from tabi.intercept.export import ways_to_trust

    path = path_of(folder)
    certificate = read(path)
    if only_path:
        print(path)
        return 0
    print_facts(certificate, path)
    print("\nHow to trust it, and all that its key signs (copy the certificate first where it is not, never the key):")
    for who, command in ways_to_trust(path):
        print(f"  {who + ':':<16}{printable(command)}")
    key = os.path.join(os.path.dirname(path), FILES[1])
    if os.path.lexists(key):
        Authority.load(path, key)  # says what is wrong with it
    return 0


@ca.command()
@folder
@click.option(
    "--format",
    "form",
    type=click.Choice(["pem", "der", "p12"]),
    default="pem",
    help="p12: a trust store for Java. Default: pem.",
)
def export(folder: str | None, form: str) -> int:
    """Write an authority's certificate to standard output, never the key.

    The password of a trust store (p12) is changeit, as that of Java's own.

    Example:  tabi ca export --format p12 > trust.p12
    """
    from tabi.intercept.export import FORMS

    octets = FORMS[form](read(path_of(folder)))
    if form != "pem" and sys.stdout.isatty():
        raise ConfigError(f"{form} is not text: send it to a file, as in `tabi ca export --format {form} > ca.{form}`")
    sys.stdout.buffer.write(octets)
    sys.stdout.buffer.flush()
    return 0


def path_of(folder: str | None) -> str:
    """The path of the certificate."""
    from tabi.intercept.authority import FILES, default_paths

    return default_paths()[0] if folder is None else os.path.join(os.path.abspath(folder), FILES[0])


def read(path: str) -> x509.Certificate:
    """The authority's certificate. Raises ConfigError."""
    from tabi.intercept.authority import read_certificates

    return read_certificates(path)[0]


def print_facts(certificate: x509.Certificate, path: str) -> None:
    """Whose it is, and where."""
    from tabi.intercept.export import fingerprint

    print(f"Authority:    {printable(certificate.subject.rfc4514_string())}")
    print(f"SHA-256:      {fingerprint(certificate)}")
    print(f"Valid:        {certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}")
    print(f"Certificate:  {printable(path)}")
