"""Shell completion: a script that completes jobs, recipes, options and the values that an option allows."""

from __future__ import annotations

from collections.abc import Mapping

from raymae.cli.arguments import Settings
from raymae.cli.help import dashed
from raymae.cli.job import CONSOLE, Command, Job
from raymae.cli.mistakes import by_name, refuse
from raymae.cli.options import options_of
from raymae.config.recipes import RECIPES

SCRIPT = """\
# completion of {console}: source <({console} --completion {interpreter})
_{console}() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" job="${{COMP_WORDS[1]}}"
  local words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{jobs} --help --completion"
  elif case " {commands} " in *" $job "*) true ;; *) false ;; esac; then
    return
  else
    case "$before" in
{choices}
      --help) words="all {sections}" ;;
      *)
        case "$word" in
          -*) words="{options} --help" ;;
          *) [ "$COMP_CWORD" -ne 2 ] || words="{recipes}" ;;
        esac ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -o bashdefault -F _{console} {console}
"""
ZSH = "autoload -U +X compinit && compinit; autoload -U +X bashcompinit && bashcompinit\n"
"""By which zsh reads completions of bash."""


def script(jobs: Mapping[str, Job | Command], shell: str) -> str:
    """The script for a shell."""
    if shell not in ("bash", "zsh"):
        refuse(f"--completion needs the name of the shell, bash or zsh{f', not {shell}' if shell else ''}")
    options = list(options_of(Settings()))
    choices = [f'      {one.name}) words="{" ".join(one.choices)}" ;;' for one in options if one.choices]
    text = SCRIPT.format(
        console=CONSOLE,
        interpreter=shell,
        jobs=" ".join(jobs),
        commands=" ".join(name for name, job in jobs.items() if isinstance(job, Command)),
        choices="\n".join(choices),
        sections=" ".join(dict.fromkeys(dashed(one.section) for one in options if one.section)),
        options=" ".join(f"--{name}" for name in by_name(options)),
        recipes=" ".join(RECIPES),
    )
    return f"{ZSH if shell == 'zsh' else ''}{text}"
