"""Writes the script of each shell."""

from collections.abc import Callable, Iterator, Mapping

from pagestream.completion.words import Option, Value, Words

_BASH = """\
_pagestream() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}
    local options words
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W '{commands} --help --version' -- "$current"))
        return
    fi
    case "${{COMP_WORDS[1]}} $previous" in
{values}
    esac
    case "${{COMP_WORDS[1]}}" in
{words}
    esac
    if [[ $current == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$current"))
    elif [ -n "$words" ]; then
        COMPREPLY=($(compgen -W "$words" -- "$current"))
    else
        _pagestream_files
    fi
}}
_pagestream_files() {{
    local file
    compopt -o filenames
    while IFS= read -r file; do COMPREPLY+=("$file"); done < <(compgen -f -- "$current")
}}
complete -F _pagestream pagestream
"""
_ZSH = """\
#compdef pagestream
_pagestream() {{
    local -a commands options choices
    if (( CURRENT == 2 )); then
        commands=(
{commands}
        )
        _describe command commands
        return
    fi
    case "$words[2] $words[CURRENT-1]" in
{values}
    esac
    case $words[2] in
{words}
    esac
    if [[ $PREFIX == -* ]]; then
        _describe -o option options
    elif (( $#choices )); then
        compadd -- $choices
    else
        _files
    fi
}}
if [ "$funcstack[1]" = _pagestream ]; then
    _pagestream "$@"
else
    compdef _pagestream pagestream
fi
"""


def bash_script(commands: Mapping[str, Words]) -> str:
    """Returns the script for bash."""
    values: list[str] = []
    words: list[str] = []
    for name, command in commands.items():
        paths, texts = [], []
        for option in command.options:
            if option.value is Value.CHOICE:
                reply = f"COMPREPLY=($(compgen -W '{' '.join(option.choices)}' -- \"$current\"))"
                values.append(f"        '{name} {option.name}') {reply}; return ;;")
            elif option.value is Value.PATH:
                paths.append(f"'{name} {option.name}'")
            elif option.value is Value.TEXT:
                texts.append(f"'{name} {option.name}'")
        if paths:
            values.append(f"        {'|'.join(paths)}) _pagestream_files; return ;;")
        if texts:
            values.append(f"        {'|'.join(texts)}) return ;;")
        listed = " ".join(option.name for option in command.options)
        alone = " ".join(command.choices)
        words.append(f"        {name}) options='{listed}' words='{alone}' ;;")
    return _BASH.format(
        commands=" ".join(commands), values="\n".join(values), words="\n".join(words)
    )


def zsh_script(commands: Mapping[str, Words]) -> str:
    """Returns the script for zsh."""
    values: list[str] = []
    words: list[str] = []
    for name, command in commands.items():
        values += [
            f"        '{name} {option.name}') {reply}return ;;"
            for option in command.options
            if (reply := _zsh_values(option))
        ]
        rows = [f"            {_quoted(f'{o.name}:{o.meaning}')}" for o in command.options]
        words.append(
            "\n".join([f"        {name})", "            options=(", *rows, "            )"])
        )
        if command.choices:
            words.append(f"            choices=({' '.join(command.choices)})")
        words.append("            ;;")
    listed = [f"            {_quoted(f'{name}:{one.summary}')}" for name, one in commands.items()]
    return _ZSH.format(commands="\n".join(listed), values="\n".join(values), words="\n".join(words))


def fish_script(commands: Mapping[str, Words]) -> str:
    """Returns the script for fish."""
    return "\n".join(_fish_lines(commands)) + "\n"


SCRIPTS: dict[str, Callable[[Mapping[str, Words]], str]] = {
    "bash": bash_script,
    "zsh": zsh_script,
    "fish": fish_script,
}
"""By shell."""


def _zsh_values(option: Option) -> str:
    match option.value:
        case Value.CHOICE:
            return f"compadd -- {' '.join(option.choices)}; "
        case Value.PATH:
            return "_files; "
        case Value.TEXT:
            return "_message value; "
        case Value.NONE:
            return ""


def _fish_lines(commands: Mapping[str, Words]) -> Iterator[str]:
    yield "complete -c pagestream -e"
    for name, command in commands.items():
        summary = _quoted(command.summary)
        yield f"complete -c pagestream -f -n __fish_use_subcommand -a {name} -d {summary}"
        here = f"complete -c pagestream -n '__fish_seen_subcommand_from {name}'"
        if command.choices:
            yield f"{here} -f -a '{' '.join(command.choices)}'"
        for option in command.options:
            # -x: a value that is no file; -r -F: a file.
            kind = {
                Value.NONE: "",
                Value.TEXT: " -x",
                Value.PATH: " -r -F",
                Value.CHOICE: f" -x -a '{' '.join(option.choices)}'",
            }[option.value]
            long = option.name.removeprefix("--")
            yield f"{here} -l {long}{kind} -d {_quoted(option.meaning)}"


def _quoted(text: str) -> str:
    """Returns a text as one word of any of the shells."""
    return "'" + text.replace("\\", "").replace("'", "'\\''") + "'"
