"""`tabi man`."""

from __future__ import annotations

from pathlib import Path

import click

from tabi.cli.help import Command


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path), help="Where to; it is made if need be.")
@click.pass_context
def man(context: click.Context, folder: Path) -> int:
    """Write the manual pages of tabi to a folder: man1 and man5 in it.

    They say what `tabi COMMAND -h` says, and what each key of tabi.toml means.

    Example:  tabi man ~/.local/share/man && man tabi-serve
    """
    from tabi.cli.man_pages import make_pages
    from tabi.cli.tree import make_tree

    app = context.find_root().command
    assert isinstance(app, click.Group)
    for name, text in make_pages(make_tree(app)).items():
        path = folder / f"man{name[-1]}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0
