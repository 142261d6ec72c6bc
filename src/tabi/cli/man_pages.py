"""The manual pages, in the macros of man(7): a page for each command, made of its help, and one for tabi.toml."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import click
import msgspec

import tabi
from tabi.cli.tree import Argument, Node, Option
from tabi.config.json_schema import find_structs
from tabi.config.schema import Config
from tabi.config.texts import in_one_line, texts_of

EXIT_CODES = {"0": "Done.", "1": "It failed while running.", "2": "The command line or the configuration is wrong."}

SEE_ALSO = ("tabi(1)", "tabi.toml(5)")


def make_pages(tree: Node) -> dict[str, str]:
    """All pages by their names, such as ``tabi-serve.1``."""
    pages = {"tabi.1": main_page(tree), "tabi.toml.5": file_page()}
    for node in tree.children:
        pages[f"tabi-{node.path[0]}.1"] = command_page(node)
    return pages


def main_page(tree: Node) -> str:
    """The page of `tabi` itself."""
    others = sorted(f"tabi-{node.path[0]}(1)" for node in tree.children)
    return page(
        "tabi",
        1,
        tree.summary,
        [
            *section("SYNOPSIS", synopsis(tree)),
            *section("DESCRIPTION", described(tree.command)),
            *section(
                "COMMANDS", (line for node in tree.children for line in item(f"tabi {node.path[0]}", node.summary))
            ),
            *section("OPTIONS", options(tree.options)),
            *section("EXIT STATUS", (line for code, what in EXIT_CODES.items() for line in item(code, what))),
            *section("ENVIRONMENT", environment()),
            *section("EXAMPLES", prose(tree.command.epilog or "")),
            *section("SEE ALSO", [", ".join(map(escape, [*others, "tabi.toml(5)"]))]),
        ],
    )


def command_page(node: Node) -> str:
    """The page of a command, or of a group of them."""
    lines = [
        *section("SYNOPSIS", synopsis(node)),
        *section("DESCRIPTION", described(node.command)),
        *section("ARGUMENTS", arguments(node.arguments)),
        *section("OPTIONS", options(node.options)),
    ]
    if node.children:
        lines.append(".SH COMMANDS")
    for child in node.children:
        lines.append(f".SS {escape(' '.join(('tabi', *child.path)))}")
        lines += [
            *synopsis(child),
            ".PP",
            *described(child.command),
            *arguments(child.arguments),
            *options(child.options),
        ]
    lines += section("EXAMPLES", prose(node.command.epilog or ""))
    lines += section("SEE ALSO", [", ".join(map(escape, SEE_ALSO))])
    return page(f"tabi-{node.path[0]}", 1, node.summary, lines)


def file_page() -> str:
    """The page of tabi.toml: what stands behind each key of its structs."""
    about = (
        "One file of TOML, read by `tabi serve -c` and checked by `tabi check`. Every key has a default; one that does "
        'not exist is an error. Durations are seconds, or text such as "200ms" or "5 min"; sizes are octets, or '
        '"10 MB"; rates are "20/s" or "10 MB/s".'
    )
    lines = [*section("DESCRIPTION", prose(about)), ".SH KEYS"]
    for kind in find_structs(Config, {}):
        texts = texts_of(kind)
        lines += [f".SS {escape(heading(kind))}", *prose(in_one_line(kind.__doc__ or ""))]
        for field in msgspec.structs.fields(kind):
            lines += item(field.encode_name, texts.get(field.name, ""))
    lines += section("SEE ALSO", [escape("tabi-serve(1), tabi-check(1), tabi-schema(1)")])
    return page("tabi.toml", 5, "configuration of tabi", lines)


def heading(kind: type) -> str:
    """What a table is called: what its text begins with."""
    text = in_one_line(kind.__doc__ or "").replace("`", "")
    return "Top level" if kind is Config else re.split(r"[:,.](?: |$)", text)[0]


# --- parts of a page ---


def page(name: str, number: int, summary: str, lines: Iterable[str]) -> str:
    """A whole page."""
    title = f'.TH {escape(name.upper())} {number} "" "tabi {tabi.__version__}" "tabi"'
    text = f"{summary[:1].lower()}{summary[1:]}"
    return "\n".join((title, ".SH NAME", f"{escape(name)} \\- {escape(text)}", *lines, ""))


def section(title: str, lines: Iterable[str]) -> list[str]:
    """A section, if there is anything in it."""
    found = list(lines)
    return [f".SH {title}", *found] if found else []


def synopsis(node: Node) -> Iterator[str]:
    """How a command is called."""
    yield f".B {escape(' '.join(('tabi', *node.path)))}"
    if node.options:
        yield "[\\fIOPTIONS\\fR]"
    if node.children:
        yield "\\fICOMMAND\\fR [\\fIARGS\\fR]..."
    for argument in node.arguments:
        yield f"\\fI{escape(argument.metavar)}\\fR"


def described(command: click.Command) -> Iterator[str]:
    """The help of a command."""
    yield from prose(command.help or "")


def arguments(found: Iterable[Argument]) -> Iterator[str]:
    """What each argument is."""
    for argument in found:
        yield from (".TP", f"\\fI{escape(argument.metavar)}\\fR", *filled(argument.text))


def options(found: Iterable[Option]) -> Iterator[str]:
    """What each option does."""
    for option in found:
        names = ", ".join(f"\\fB{escape(name)}\\fR" for name in option.names)
        value = f" \\fI{escape(option.metavar)}\\fR" if option.metavar else ""
        yield from (".TP", names + value, *filled(option.text))


def environment() -> Iterator[str]:
    """The variables that several commands read."""
    yield from item("ALL_PROXY", "The proxy of `tabi connect`, `udp`, `listen` and `ping`, unless they are given one.")
    yield from item("NO_PROXY", "What `tabi connect` connects to directly.")
    yield from item("NO_COLOR", "No colours, on a terminal too.")


def item(name: str, text: str) -> list[str]:
    """A name and what it means."""
    return [".TP", f"\\fB{escape(name)}\\fR", *filled(text)]


def prose(text: str) -> Iterator[str]:
    """Paragraphs as click has them: one that begins with \\b stays as it is."""
    paragraphs = [part for part in re.split(r"\n\s*\n", text.strip("\n")) if part.strip()]
    for number, paragraph in enumerate(paragraphs):
        if number:
            yield ".PP"
        if paragraph.lstrip().startswith("\b"):
            yield from (".nf", ".RS 4", *map(escape, lines_of(paragraph)), ".RE", ".fi")
        elif found := re.match(r"\s*(Example):\s+(.+)", paragraph, re.S):
            yield from (f"{found[1]}:", ".PP", ".nf", ".RS 4", escape(" ".join(found[2].split())), ".RE", ".fi")
        else:
            yield from filled(paragraph)


def lines_of(paragraph: str) -> list[str]:
    """The lines of a paragraph that stays as it is."""
    return [line.strip() for line in paragraph.split("\n") if line.strip() and line.strip() != "\b"]


def filled(text: str) -> list[str]:
    """Text that is filled; what stands in backquotes is bold."""
    parts = re.split(r"`([^`]+)`", " ".join(text.split()))
    shown = "".join(f"\\fB{inside(part)}\\fR" if place % 2 else inside(part) for place, part in enumerate(parts))
    return [guarded(shown) or "\\&"]


def escape(text: str) -> str:
    """Text that means nothing to roff."""
    return guarded(inside(text))


SIGNS = str.maketrans({"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti", '"': "\\(dq"})


def inside(text: str) -> str:
    """The same in the middle of a line, where a dot begins no macro."""
    return text.translate(SIGNS)


def guarded(line: str) -> str:
    """The same for what may stand at the beginning."""
    return f"\\&{line}" if line.startswith(".") else line
