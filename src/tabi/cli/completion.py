"""`tabi completion`."""

from __future__ import annotations

import click

from tabi.cli.help import Command

SHELLS = ("bash", "zsh", "fish")


@click.command(cls=Command)
@click.argument("shell", metavar="|".join(SHELLS), type=click.Choice(SHELLS), help="Which shell it is for.")
@click.pass_context
def completion(context: click.Context, shell: str) -> int:
    """Print a script that has a shell complete the command line of tabi.

    It completes commands, options, and what they take: files, profiles, protocols of URLs. It asks nobody, so that it
    is there at once; print it again after an upgrade.

    Examples:

    \b
    tabi completion bash > ~/.local/share/bash-completion/completions/tabi
    tabi completion zsh > ~/.zfunc/_tabi            # a folder of fpath
    tabi completion fish > ~/.config/fish/completions/tabi.fish
    """
    from tabi.cli import completion_scripts
    from tabi.cli.tree import make_tree

    app = context.find_root().command
    assert isinstance(app, click.Group)
    print(getattr(completion_scripts, f"write_{shell}")(make_tree(app)), end="")
    return 0
