"""Print the development group of pyproject.toml, a requirement a line, for a pip that does not know groups yet."""

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())
print("\n".join(project["dependency-groups"]["dev"]))
