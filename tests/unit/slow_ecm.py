"""A GMP-ECM that prints what the real one prints, at the pace a test asks for."""

import shlex
import time


def until(condition, timeout=60):
    """Wait until `condition()` is true, and return its value; the timeout is for a test that fails."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


def slow_ecm(path, seconds=0.0, then="", factor_at=0, factor=""):
    """A program for `path` whose curves take `seconds` each; `then` is shell code for its end.

    Curve number `factor_at` finds `factor`. A curve's sigma is unique, and each process leaves its number in PATH.pids.
    """
    pids = shlex.quote(f"{path}.pids")
    path.write_text(
        f"""#!/bin/sh
read number
echo $$ >> {pids}
while [ "$1" != -c ]; do shift; done
curves=$2
echo "GMP-ECM 7.0.7 [configured with GMP 6.3.0, --enable-asm-redc] [ECM]"
i=1
while [ $i -le $curves ]; do
    [ $i -gt 1 ] && echo "Run $i out of $curves:"
    echo "Using B1=200, B2=5286, polynomial x^1, sigma=1:$$$i"
    echo "Step 1 took 0ms"
    {f"sleep {seconds}" if seconds else ""}
    echo "Step 2 took 0ms"
    if [ $i -eq {factor_at} ]; then
        echo "********** Factor found in step 2: {factor}"
        echo "Found prime factor of 19 digits: {factor}"
        exit 14
    fi
    i=$((i+1))
done
{then}
"""
    )
    path.chmod(0o755)
    return path
