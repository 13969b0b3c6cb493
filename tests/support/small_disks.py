"""Small disks, mounted for a process of its own."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache

import pytest


@cache
def may_mount():
    command = ["unshare", "-Urm", "true"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True, check=False).returncode == 0


needs_mount = pytest.mark.skipif(
    not may_mount(), reason="`unshare -Urm` is not allowed here: no small disks; RLIMIT_FSIZE is tested alone"
)


def mounted(disk, options, then=""):
    return f"mount -t tmpfs -o {options} none '{disk}'" + (f"; {then}" if then else "")
