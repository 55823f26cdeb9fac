"""An argument parser that suggests what was probably meant, and knows the options of each command."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from lorae.near import did_you_mean


class Parser(argparse.ArgumentParser):
    """Parser of the whole command line, or of one command."""

    words: ClassVar[Sequence[str]] = ()  # being read now

    def read(self, words: Sequence[str] | None = None) -> argparse.Namespace:
        """As `parse_args`, but an unknown option is compared with those of its own command."""
        self.remember()
        Parser.words = sys.argv[1:] if words is None else words
        arguments, unknown = self.parse_known_args(words)
        if unknown:
            command: Parser = getattr(arguments, "parser", self)
            near = did_you_mean(unknown[0].partition("=")[0], command.flags())
            command.error(f"unrecognized arguments: {' '.join(unknown)}; {near}see {command.prog} --help")
        return arguments

    def remember(self) -> None:
        """Store each command's parser in its arguments."""
        for command in self.commands().values():
            command.set_defaults(parser=command)
            command.remember()

    def commands(self) -> dict[str, Any]:
        """The parsers of its commands, by name."""
        kinds = (a for a in self._actions if isinstance(a, argparse._SubParsersAction))
        return {name: parser for action in kinds for name, parser in action.choices.items()}

    def flags(self) -> list[str]:
        """Its options."""
        return [flag for action in self._actions for flag in action.option_strings]

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and what was meant if a command is misspelt; exit code 2."""
        if found := re.match(r"argument (\w+): invalid choice: '(.*?)'", message):
            known = list(self.commands())
            if found[1] in ("COMMAND", "PART") and known:
                near = did_you_mean(found[2], known)
                message = f"{found[2]!r} is no command; {near}there are {', '.join(known)}"
        elif "required" in message:  # perhaps it is given but misspelt
            flags = [word.partition("=")[0] for word in self.words if word.startswith("--")]
            meant = [f"{f}: {near}" for f in flags if f not in self.flags() and (near := self._near(f))]
            message += "".join(f"; {hint.strip()}" for hint in meant)
        self.exit(2, f"{self.prog}: {message}\n")

    def _near(self, flag: str) -> str:
        return did_you_mean(flag, self.flags())


def use_colour(stream: Any = None) -> bool:
    """Whether a stream is a terminal whose user wants colours (https://no-color.org)."""
    stream = sys.stderr if stream is None else stream
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def coloured(text: str, colour: str, stream: Any = None) -> str:
    """The text in "red", "green" or "bold" if the stream shows colours, else unchanged."""
    code = {"red": 31, "green": 32, "bold": 1}[colour]
    return f"\x1b[{code}m{text}\x1b[0m" if use_colour(stream) else text


class Version(argparse.Action):
    """Print the version, that of Python and the commit of a checkout."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(nargs=0, **settings)

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        import platform

        from jobs.request import commit
        from lorae import __version__

        made = commit(Path(__file__).parent)
        print(f"lorae {__version__} (commit {made}), Python {platform.python_version()}")
        parser.exit(0)


def option(flag: str, **settings: Any) -> Parser:
    """A parent of the commands that have this option."""
    parent = Parser(add_help=False)
    parent.add_argument(flag, **settings)
    return parent
