"""The commands. Nothing imports this package."""
