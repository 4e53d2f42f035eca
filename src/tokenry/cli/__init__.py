"""Top floor: the ``tokenry`` command, one file per subcommand. Importing it loads no torch."""

from __future__ import annotations

import os
import sys

from tokenry.errors import BAD_INPUT, DAMAGED, INTERRUPTED, MISSING, OK

_INTERRUPTED = "interrupted; what was finished is on disk, run the same command to go on"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit.

    Exit codes: 0 done, 1 a claim fails, 2 bad input, 3 something is missing (the message holds the command that gets it),
    4 a file is damaged, 130 interrupted (finished work is on disk).
    """
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code and prints errors to stderr."""
    from tokenry.cli.app import app
    from tokenry.cli.console import complain
    from tokenry.errors import AssetDamagedError, AssetMissingError, MissingDependencyError, ResultFileError

    try:
        code = app(args=arguments, standalone_mode=True, prog_name="tokenry")
        return OK if code is None else int(code)
    except SystemExit as leave:
        if leave.code == INTERRUPTED:
            complain(_INTERRUPTED)
        return leave.code if isinstance(leave.code, int) else BAD_INPUT
    except BrokenPipeError:
        # The reader of stdout went away (`tokenry list | head`): not an error of ours.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        return OK
    except KeyboardInterrupt:
        complain(_INTERRUPTED)
        return INTERRUPTED
    except (AssetMissingError, MissingDependencyError) as error:
        complain(str(error))
        return MISSING
    except (ResultFileError, AssetDamagedError) as error:
        complain(str(error))
        return DAMAGED
    except (ValueError, TypeError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        complain(str(error))
        return BAD_INPUT
