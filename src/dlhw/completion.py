"""Tab completion: ``eval "$(dlhw completion)"``.

The script that the command prints makes the shell call ``python -m dlhw.completion --words LINE``, which prints the
possible last words. Overrides are completed by Hydra. This module imports no more than a line needs.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dlhw.cli.verbs import VERBS, module_of
from dlhw.errors import UsageError

COMPOSING = ("train", "search", "find-lr")
"""The verbs whose arguments are overrides."""
_BASH = """_dlhw_completion() {{
    local IFS=$'\\n' line="${{COMP_LINE:0:COMP_POINT}}"
    local word="${{line##* }}" words
    words=$({command} "$line" 2>/dev/null)
    local skipped="${{word%"${{COMP_WORDS[COMP_CWORD]}}"}}"
    [ "${{COMP_WORDS[COMP_CWORD]}}" = "=" ] && skipped="$word"
    COMPREPLY=()
    for word in $words; do COMPREPLY+=("${{word#"$skipped"}}"); done
    [[ "${{COMPREPLY[0]}}" == *[=./] ]] && compopt -o nospace
    return 0
}}
complete -o default -F _dlhw_completion dlhw
"""
_ZSH = """(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit -u; }}
_dlhw_completion() {{
    local -a words_found open closed
    words_found=("${{(@f)$({command} "$LBUFFER" 2>/dev/null)}}")
    open=(${{(M)words_found:#*[=./]}})
    closed=(${{words_found:#*[=./]}})
    (( $#open )) && compadd -S '' -a open
    (( $#closed )) && compadd -a closed
    (( $#open + $#closed )) || _files
}}
compdef _dlhw_completion dlhw
"""
_FISH = """complete -c dlhw -e
complete -c dlhw -f -a '({command} (commandline -cp | string collect) 2>/dev/null)'
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
"""The script of each shell; ``{command}`` prints the possible last words of the line that follows it."""


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="dlhw completion",
        description='Print the script for tab completion of verbs and overrides: eval "$(dlhw completion)" in bash or '
        "zsh, dlhw completion fish | source in fish.",
    )
    parser.add_argument("shell", nargs="?", metavar="SHELL", help="bash, zsh or fish (default: that of $SHELL)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the script of a shell. An unknown shell ends the program with one line and exit code 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--words"]:
        _print_words(" ".join(arguments[1:]))
        return
    from dlhw.cli import failures

    options = argument_parser().parse_args(arguments)
    with failures.end_program():
        shell = options.shell or Path(os.environ.get("SHELL", "")).name
        if shell not in SCRIPTS:
            raise UsageError(f"{shell or 'SHELL'}: unknown shell; expected one of {', '.join(SCRIPTS)}")
        print(script(shell), end="")


def script(shell: str) -> str:
    """Return the script for tab completion in a shell.

    The command in it does not import modules from the working directory (``-P``), where any file could be.
    """
    command = f"{shlex.quote(sys.executable)} -P -m dlhw.completion --words"
    if shell == "fish":  # it is in single quotes there
        command = command.replace("\\", "\\\\").replace("'", "\\'")
    return SCRIPTS[shell].format(command=command)


def _print_words(line: str) -> None:
    """Print the possible last words of a line; nothing for a line with a mistake."""
    try:
        words = completions(line)
    except (Exception, SystemExit):  # an error would be printed into the prompt
        return
    sys.stdout.write("".join(f"{word}\n" for word in words))


def completions(line: str) -> list[str]:
    """Return the possible last words of a command line that begins with ``dlhw`` and ends at the cursor."""
    _, *words = line.split()
    last = "" if line[-1:].isspace() or not words else words.pop()
    verb = words[0] if words and words[0] in VERBS else None
    verbs = [name for name in VERBS if not words and name.startswith(last)]
    if verb is None or verb in COMPOSING:
        return [*verbs, *_overrides(words[verb is not None :], last)]
    if verb == "completion":
        return [shell for shell in SCRIPTS if shell.startswith(last)]
    if last.startswith("-"):
        return [flag for flag in _flags(verb) if flag.startswith(last)]
    return _paths(last) if verb != "new" else []


def _overrides(words: Sequence[str], last: str) -> list[str]:
    """Return the flags of Hydra, the paths for ``resume=``, or the overrides that begin with ``last``."""
    from dlhw.cli import hydra_internals

    if last.startswith("-"):
        return sorted(flag for flag in hydra_internals.flags() if flag.startswith(("--", last)) and last in flag)
    key, equals, value = last.partition("=")
    if equals and key == "resume":
        return [f"resume={path}" for path in _paths(value)]
    if words[-1:] == ["--config-dir"]:
        return _paths(last, suffixes=())
    from dlhw.cli.composition import completed_overrides

    return completed_overrides([word for word in words if word not in ("-m", "--multirun")], last)


def _flags(verb: str) -> list[str]:
    """Return the flags of a verb that reads its arguments with argparse."""
    import importlib

    parser: argparse.ArgumentParser = importlib.import_module(module_of(verb)).argument_parser()
    return sorted(flag for flag in parser._option_string_actions if flag.startswith("--"))


def _paths(word: str, *, suffixes: Sequence[str] | None = None) -> list[str]:
    """Return the visible folders, with a slash, and files that begin with a word; and ``last``."""
    folder, _, start = word.rpartition("/")
    place = Path(folder or ("/" if word.startswith("/") else ".")).expanduser()
    prefix = word[: len(word) - len(start)]
    entries = sorted(place.iterdir()) if place.is_dir() else []
    shown = [path for path in entries if path.name.startswith(start) and (start or not path.name.startswith("."))]
    names = [f"{prefix}{path.name}{'/' * path.is_dir()}" for path in shown if suffixes is None or path.is_dir()]
    return [*names, *(["last"] if suffixes is None and word and "last".startswith(word) else [])]


if __name__ == "__main__":
    main()
