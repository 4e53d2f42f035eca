"""``python -m tokenry.lab.harness``: the command ``lm_eval`` with the model ``tokenry`` and the tasks of this package."""

from __future__ import annotations

import sys

from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

from tokenry.lab.harness import TASKS


def main() -> None:
    """Run ``lm_eval`` on the arguments of this process; its tasks and those of this package, if no other folder is named."""
    named = any(word.split("=")[0] == "--include_path" for word in sys.argv)
    if len(sys.argv) > 2 and not named:
        sys.argv += ["--include_path", str(TASKS)]
    cli_evaluate()


if __name__ == "__main__":
    main()
