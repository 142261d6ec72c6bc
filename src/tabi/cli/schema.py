"""`tabi schema`."""

from __future__ import annotations

import json

import click

from tabi.cli.help import Command


@click.command(cls=Command)
def schema() -> int:
    """Print the JSON schema of tabi.toml, for editors.

    An editor with it completes keys, explains them, and marks what is wrong. `tabi check` finds more.

    Example:  tabi schema > tabi.schema.json
    """
    from tabi.config.json_schema import make_schema

    print(json.dumps(make_schema(), indent=1))
    return 0
