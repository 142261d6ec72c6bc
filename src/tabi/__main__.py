"""Where the program begins: ``tabi`` and ``python -m tabi`` call `main`."""

from tabi.signals import hold


def main() -> None:
    """See to the signals, before anything that takes time is imported; then run the command."""
    hold()
    from tabi.cli.main import main

    main()


if __name__ == "__main__":
    main()
