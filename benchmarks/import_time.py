"""How long `import tokenry` takes in a fresh interpreter, and whether it loads torch."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from results_file import environment, write

_PROBE = "import sys; import tokenry; sys.stdout.write(str('torch' in sys.modules))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    times = {"import tokenry": [], "python alone": []}
    loads_torch = ""
    for _ in range(3 if options.quick else 11):
        for name, code in (("import tokenry", _PROBE), ("python alone", "pass")):
            started = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            times[name].append(time.perf_counter() - started)
            loads_torch = done.stdout or loads_torch
    medians = {name: statistics.median(values) for name, values in times.items()}
    row = {
        "import (s)": medians["import tokenry"] - medians["python alone"],
        "python alone (s)": medians["python alone"],
        "loads torch": loads_torch,
    }
    print(row)
    if not options.quick:
        body = {"setting": "Median of 11 fresh interpreters.", "rows": [row], "environment": environment("cpu")}
        write("import_time", body, "cpu")


if __name__ == "__main__":
    main()
