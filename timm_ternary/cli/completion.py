"""completion: a script with which a shell completes commands and options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from .common import app

__all__ = ["completion", "script"]

Words = Mapping[str, Mapping[str, tuple[str, ...]]]
"""Of each command (of none: ``""``) the options, and of those the words that they take."""

# One place is enough: zsh runs the functions of bash.
_BASH = """\
# timm-ternary: completion for {shell}; type: source <(timm-ternary completion {shell})
{zsh}_timm_ternary() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
    local command="" words="" place
    for ((place = 1; place < COMP_CWORD; place++)); do
        case "${{COMP_WORDS[place]}}" in
            -*) ;;
            *) command="${{COMP_WORDS[place]}}"; break ;;
        esac
    done
    case "$command $before" in
{values}
        *)
            case "$command $current" in
{options}
                " "*) words="{commands}" ;;
            esac ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _timm_ternary timm-ternary
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


@app.command()
def completion(
    shell: Annotated[str, typer.Argument(help="bash, zsh or fish.")],
) -> None:
    """Print a script that lets a shell complete commands.

    Type: source <(timm-ternary completion bash), the same with zsh, or timm-ternary completion
    fish | source.
    """
    from ..errors.wording import unknown

    if shell not in _SHELLS:
        raise ValueError(unknown("shell", shell, _SHELLS))
    print(script(shell), end="")


def script(shell: str) -> str:
    """The script for ``"bash"``, ``"zsh"`` or ``"fish"``, made from the commands there are."""
    words, helps = _read()
    return _SHELLS[shell](shell, words, helps)


def _read() -> tuple[Words, dict[str, str]]:
    """The options of each command, and its help in one line."""
    from ..training.arguments.help import options
    from ..training.run import ARGUMENTS

    every: Any = typer.main.get_command(app)
    common = {"--help": (), "--import": (), "--quiet": ()}
    words: dict[str, dict[str, tuple[str, ...]]] = {"": {**_options(every), **common}}
    for name, command in every.commands.items():
        words[name] = {**_options(command), **common}
    words["train"] |= {"--accelerate": (), **options(*ARGUMENTS)}
    words["completion"] |= {"": tuple(_SHELLS)}
    helps = {
        name: command.get_short_help_str(limit=100) for name, command in every.commands.items()
    }
    return words, helps


def _options(command: Any) -> dict[str, tuple[str, ...]]:
    return {
        name: ()
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("--")
    }


def _bash(shell: str, words: Words, helps: Mapping[str, str]) -> str:
    values = [
        f'        "{command} {option}") words="{" ".join(found)}" ;;'
        for command, known in words.items()
        for option, found in known.items()
        if found and option
    ]
    options = [
        f'                "{command} "-*) words="{" ".join(filter(None, known))}" ;;'
        for command, known in words.items()
    ]
    options += [
        f'                "{command} "*) words="{" ".join(known[""])}" ;;'
        for command, known in words.items()
        if "" in known
    ]
    return _BASH.format(
        shell=shell,
        zsh=_ZSH if shell == "zsh" else "",
        values="\n".join(values),
        options="\n".join(options),
        commands=" ".join(helps),
    )


def _fish(shell: str, words: Words, helps: Mapping[str, str]) -> str:
    start = "complete -c timm-ternary"
    lines = ["# timm-ternary: completion for fish; type: timm-ternary completion fish | source"]
    for name, text in helps.items():
        quoted = text.replace("\\", "\\\\").replace("'", "\\'")
        lines.append(f"{start} -n __fish_use_subcommand -f -a {name} -d '{quoted}'")
    for command, known in words.items():
        where = f"'__fish_seen_subcommand_from {command}'" if command else "__fish_use_subcommand"
        for option, found in known.items():
            name = f" -l {option.removeprefix('--')}" if option else " -f"
            takes = f" -x -a '{' '.join(found)}'" if found and option else ""
            takes = f" -a '{' '.join(found)}'" if not option else takes
            lines.append(f"{start} -n {where}{name}{takes}")
    return "\n".join(lines) + "\n"


_SHELLS = {"bash": _bash, "zsh": _bash, "fish": _fish}
