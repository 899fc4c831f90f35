#!/usr/bin/env python3
"""Run an unpacked device bundle: self-test, build, bench, enhance; -h lists more. Also `python3 -I run self-test`.

`edgese bundle` puts this file into the bundle's root as `run`. It is read by Pythons that are too old, to say so.
"""

import os
import runpy
import sys

if sys.version_info < (3, 10):  # noqa: UP036 - a board's Python is what it is
    sys.exit("error: found Python {}.{}, wanted 3.10 or later: python3.10 run ...".format(*sys.version_info))
try:
    import numpy  # noqa: F401
except ImportError as error:
    sys.exit(f"error: NumPy cannot be loaded ({error}): apt install python3-numpy")

sys.dont_write_bytecode = True  # files of two bundles have equal times: one's bytecode would pass for the other's
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120
runpy.run_module("edgese_device", run_name="__main__")
