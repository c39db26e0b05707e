"""The command line: parse, call one function, turn errors into one line and an exit code.

Exit codes: 0 done; 2 usage; 3 bad input (checkpoint, model, data, artifact), or an extra is missing; 4 does not fit, or fails
the audit; 5 ended by --stop-if; 130 interrupted.
Data go to stdout, messages and bars to stderr. torch is imported inside the commands, so that --help is quick.
A new command is one file in `pgolf/commands/` and one line here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any

import click

from pgolf import __version__
from pgolf.commands import in_a_job
from pgolf.errors import PgolfError, is_out_of_memory, printable

COMMANDS = {  # what the user types: module of pgolf.commands "." function, in the order of --help
    "pack": "pack.pack",
    "sweep": "sweep.sweep",
    "estimate": "estimate.estimate",
    "inspect": "inspect.inspect",
    "diff": "diff.diff",
    "unpack": "unpack.unpack",
    "export": "export.export",
    "audit": "audit.audit",
    "triage": "triage.triage",
    "eval": "evaluate.evaluate",
    "calibrate": "calibrate.calibrate",
    "tokenize": "tokenize.tokenize",
    "train": "train.train",
    "oracle": "oracle.oracle",
    "bench": "bench.bench",
    "demo": "demo.demo",
}


class _Group(click.Group):
    """Imports a command when it is asked for; our own errors become one line on stderr, anything else is a bug."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, function = COMMANDS[name].split(".")
        command: click.Command = getattr(import_module(f"pgolf.commands.{module}"), function)
        return command

    def main(self, args: Sequence[str] | None = None, *rest: Any, **named: Any) -> Any:
        _with_streams()
        if not in_a_job.several():
            return super().main(args, *rest, **named)
        words = sys.argv[1:] if args is None else list(args)
        command = partial(super().main, words, *rest, **named)
        return in_a_job.run(words[0] if words else "--help", command)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            in_a_job.say(_usage_message(error))
            ctx.exit(error.exit_code)
        except BrokenPipeError:  # whoever reads has seen enough, as of `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered goes there
            ctx.exit(0)
        except PgolfError as error:
            if not error.told_elsewhere:
                in_a_job.say(str(error))
            ctx.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            in_a_job.say("interrupted; nothing is half-written")
            ctx.exit(130)
        except (OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            in_a_job.say(_os_message(error))
            ctx.exit(3)


def _with_streams() -> None:
    """Somewhere to write to where a stream was closed, and no character that what is printed can fail on."""
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # as long as the process
        elif (stream.encoding or "").lower().replace("-", "") != "utf8" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _usage_message(error: click.UsageError) -> str:
    """What click has to say in one line, with the command to ask for help."""
    said = printable(error.format_message().strip()).rstrip(".")
    path = "pgolf" if error.ctx is None or error.ctx.parent is None else f"pgolf {error.ctx.info_name}"
    return f"{said}: see {path} --help"


def _os_message(error: Exception) -> str:
    if not isinstance(error, OSError):
        return "out of memory"
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pgolf")
def main() -> None:
    """Make a trained language model small without making it worse.

    Exit codes: 0 done, 2 usage, 3 bad input, 4 does not fit the budget or fails the audit, 5 ended by --stop-if,
    130 interrupted.
    """
    # Waiting threads that spin for long slow a shared machine threefold; ones that sleep at once slow an idle one by a quarter.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")


if __name__ == "__main__":
    main()
