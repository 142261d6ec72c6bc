"""`tabi top`. The command imports textual only when it has a screen to show."""

from tabi.cli.top.command import top

__all__ = ["top"]
