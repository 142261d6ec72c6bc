"""The scripts of `tabi completion`: everything that is known of the command line, in the words of each shell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from shlex import quote

import tabi
from tabi.cli.tree import Argument, Node, Option, Value, walk

# --- bash ---

BASH = r"""# bash completion of tabi @VERSION@, made by `tabi completion bash`.

_tabi_options() {
    case "$1" in
@OPTIONS@
    esac
}

_tabi_takes_value() {
    case "$1" in
@TAKING@
    esac
    return 1
}

# What stands behind an option, or is the Nth argument: words, then @file, @folder, @command, or @more if more follows.
_tabi_values() {
    case "$1" in
@VALUES@
    esac
}

_tabi() {
    local line=${COMP_LINE:0:COMP_POINT} path="" option="" number=0 ended="" current prefix value index
    local -a words
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    current=${words[${#words[@]}-1]}
    for ((index = 1; index < ${#words[@]} - 1; index++)); do
        if [[ -n $option ]]; then
            option=""
        elif [[ -z $ended && ${words[index]} == -- ]]; then
            ended=yes
        elif [[ -z $ended && ${words[index]} == -* ]]; then
            _tabi_takes_value "$path ${words[index]}" && option=${words[index]}
        elif [[ -z $ended && " $(_tabi_values "$path /") " == *" ${words[index]} "* ]]; then
            path="$path ${words[index]}"
        else
            ((++number))
            [[ " $(_tabi_values "$path *") " == *" @command "* ]] && ended=yes
        fi
    done
    prefix=${current%"${current##*[:=]}"}
    if [[ -z $option && -z $ended && $current == --*=* ]]; then
        option=${current%%=*}
        current=${current#*=}
    fi
    if [[ -z $option && -z $ended && $current == -* ]]; then
        value=$(_tabi_options "$path")
    elif [[ -n $option ]]; then
        value=$(_tabi_values "$path $option")
    else
        value="$(_tabi_values "$path /") $(_tabi_values "$path $number")"
        [[ $value == *[![:space:]]* ]] || value=$(_tabi_values "$path *")
    fi
    COMPREPLY=()
    case " $value " in
        *" @command "*)
            if ((number > 0)); then
                compopt -o default 2> /dev/null
            else
                mapfile -t COMPREPLY < <(compgen -c -- "$current" | sort -u)
            fi
            return ;;
        *" @file "*) compopt -o default 2> /dev/null ;;
        *" @folder "*) compopt -o dirnames 2> /dev/null ;;
        *" @more "*) compopt -o nospace 2> /dev/null ;;
    esac
    value=${value//@more/}
    mapfile -t COMPREPLY < <(compgen -W "${value//@file/}" -- "$current")
    if [[ $prefix == *: && $COMP_WORDBREAKS == *:* || $prefix == *= && $COMP_WORDBREAKS == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
    fi
}

complete -F _tabi tabi
"""


def write_bash(tree: Node) -> str:
    """The script for bash, 4.4 or newer."""
    options, taking, values = [], [], []
    for node in walk(tree):
        path = "".join(f" {name}" for name in node.path)
        options.append(
            f'        "{path}") echo {quote(" ".join(name for one in node.options for name in one.names))} ;;'
        )
        if node.children:
            values.append(bash_values(f"{path} /", Value(tuple(child.path[-1] for child in node.children))))
        for option in node.options:
            if option.value is not None:
                patterns = "|".join(f'"{path} {name}"' for name in option.names)
                taking.append(f"        {patterns}) return 0 ;;")
                values += [bash_values(f"{path} {name}", option.value) for name in option.names]
        for number, argument in enumerate(node.arguments):
            place = "*" if argument.repeated else str(number)
            values.append(bash_values(f"{path} {place}", argument.value))
    script = BASH.replace("@VERSION@", tabi.__version__).replace("@OPTIONS@", "\n".join(options))
    return script.replace("@TAKING@", "\n".join(taking)).replace("@VALUES@", "\n".join(filter(None, values)))


def bash_values(place: str, value: Value) -> str:
    """A line of `_tabi_values`; nothing where nobody knows."""
    words = [*value.words, *([f"@{value.kind}"] if value.kind else []), *(["@more"] if value.goes_on else [])]
    return f'        "{place}") echo {quote(" ".join(words))} ;;' if words else ""


# --- zsh ---

ZSH = """#compdef tabi
# zsh completion of tabi {version}, made by `tabi completion zsh`.

{functions}
if [ "$funcstack[1]" = "_tabi" ]; then
    _tabi "$@"
else
    compdef _tabi tabi
fi
"""

ZSH_GROUP = """{name}() {{
    local curcontext="$curcontext" state line
    _arguments -C -s{options} \\
        '1: :->command' \\
        '*:: :->arguments'
    case $state in
        command)
            local -a commands=(
{commands}
            )
            _describe -t commands command commands ;;
        arguments)
            (( $+functions[{name}_$words[1]] )) && {name}_$words[1] ;;
    esac
}}
"""


def write_zsh(tree: Node) -> str:
    """The script for zsh, to be called ``_tabi`` in a folder of ``fpath``."""
    functions = [
        f"_tabi_from_{place}() {{\n    {zsh_choices(value)}\n}}\n" for place, value in enumerate(zsh_values(tree))
    ]
    actions = {value: f"_tabi_from_{place}" for place, value in enumerate(zsh_values(tree))}
    for node in reversed([*walk(tree)]):
        name = "_".join(("_tabi", *node.path))
        specs = [spec for option in node.options for spec in zsh_option(option, actions)]
        if node.children:
            options = "".join(f" \\\n        {spec}" for spec in specs)
            commands = "\n".join(
                f"                {zsh_quote(f'{child.path[-1]}:{child.summary}')}" for child in node.children
            )
            functions.append(ZSH_GROUP.format(name=name, options=options, commands=commands))
        else:
            specs += [zsh_argument(argument, number, actions) for number, argument in enumerate(node.arguments, 1)]
            body = " \\\n        ".join(("_arguments -s", *specs))
            functions.append(f"{name}() {{\n    {body}\n}}\n")
    return ZSH.format(version=tabi.__version__, functions="\n".join(functions))


def zsh_quote(text: str) -> str:
    """Text as a word of the shell."""
    return "'{}'".format(text.replace("'", "'\\''"))


Actions = dict[Value, str]
"""The functions that find the choices for what is no plain list of words."""


def zsh_values(tree: Node) -> list[Value]:
    """The values that have a function of their own."""
    found: dict[Value, None] = {}
    for node in walk(tree):
        values = [option.value for option in node.options] + [argument.value for argument in node.arguments]
        found |= {value: None for value in values if value and value.words and (value.goes_on or value.kind)}
    return list(found)


def zsh_choices(value: Value) -> str:
    """What such a function does."""
    words = " ".join(value.words)
    if value.goes_on:
        return f"compadd \"$@\" -S '' - {words}"
    return f"_alternative 'words:word:({words})' 'files:file:_files'"


def zsh_option(option: Option, actions: Actions) -> Iterator[str]:
    """The words of `_arguments` for an option: one for each of its names."""
    text = re.sub(r"([\[\]\\:])", r"\\\1", first_sentence(option.text))
    others = "*" if option.repeated else f"({' '.join(option.names)})"
    for name in option.names:
        equals = "=" if option.value is not None and name.startswith("--") else "+" if option.value is not None else ""
        value = "" if option.value is None else f":{zsh_name(option.metavar)}:{zsh_action(option.value, actions)}"
        yield zsh_quote(f"{others}{name}{equals}[{text}]{value}")


def zsh_argument(argument: Argument, number: int, actions: Actions) -> str:
    """The words of `_arguments` for an argument."""
    if argument.value.kind == "command":
        return "'(-)1:command:_command_names -e' '*::arguments:_normal'"
    place = "*:" if argument.repeated else f"{number}:" if argument.required else f"{number}::"
    return zsh_quote(f"{place}{zsh_name(argument.metavar)}:{zsh_action(argument.value, actions)}")


def zsh_name(metavar: str) -> str:
    """What stands above the choices."""
    return re.sub(r"[\[\]]|\.\.\.", "", metavar).replace(":", "\\:") or " "


def zsh_action(value: Value, actions: Actions) -> str:
    """How `_arguments` finds the choices."""
    if value in actions:
        return actions[value]
    kinds = {"file": "_files", "folder": "_files -/"}
    return f"({' '.join(value.words)})" if value.words else kinds.get(value.kind, " ")


# --- fish ---

FISH = """# fish completion of tabi {version}, made by `tabi completion fish`.

function __tabi_at --description 'Whether the command line is at a command of tabi'
    set -l words (commandline -opc)
    set -e words[1]
    set -l path
    for word in $words
        string match -q -- '-*' $word; and continue
        set -a path $word
        contains -- "$path" $__tabi_groups; or break
    end
    test "$path" = "$argv[1]"
end

set -g __tabi_groups {groups}
complete -c tabi -f
{lines}
"""


def write_fish(tree: Node) -> str:
    """The script for fish."""
    lines = []
    for node in walk(tree):
        place = quote(" ".join(node.path))
        at = f"complete -c tabi -n {fish_quote(f'__tabi_at {place}')}"
        lines += [f"{at} -a {child.path[-1]} -d {fish_quote(child.summary)}" for child in node.children]
        lines += [f"{at} {fish_option(one)} -d {fish_quote(first_sentence(one.text))}" for one in node.options]
        lines += [f"{at} {found}" for argument in node.arguments if (found := fish_value(argument.value))]
    groups = " ".join(quote(" ".join(node.path)) for node in walk(tree) if node.children and node.path)
    return FISH.format(version=tabi.__version__, groups=groups, lines="\n".join(lines))


def fish_quote(text: str) -> str:
    """Text as a word of the shell."""
    return "'{}'".format(text.replace("\\", "\\\\").replace("'", "\\'"))


def fish_option(option: Option) -> str:
    """How `complete` is told of an option."""
    names = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names]
    if option.value is not None:
        names.append("-r" if option.value.kind == "file" else "-x")
        names.append(fish_value(option.value))
    return " ".join(filter(None, names))


def fish_value(value: Value) -> str:
    """How `complete` is told of what stands in a place."""
    words = f"-a {fish_quote(' '.join(value.words))}" if value.words else ""
    kinds = {
        "file": "-F",
        "folder": "-a '(__fish_complete_directories)'",
        "command": "-a '(__fish_complete_subcommand --fcs-skip=2)'",
    }
    return f"{words} {kinds.get(value.kind, '')}".strip()


def first_sentence(text: str) -> str:
    """What there is room for beside an option."""
    return re.split(r"(?<=[^.])\.(?: |$)", " ".join(text.split()), maxsplit=1)[0]
