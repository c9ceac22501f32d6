"""llama.cpp let go right after it was loaded, on a busy machine: in a process of its own, for one that hangs there holds Python still."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import xi_plugins

MODEL = Path(xi_plugins.__file__).parent / "families" / "xi_tiny" / "xi-tiny-f16.gguf"
SCRIPT = """
import sys
from xi_core.testing.harness import plan_for
from xi_plugins.engines.llama_cpp.engine import LlamaCppEngine

plan = plan_for("xi_plugins.engines.llama_cpp.engine:LlamaCppEngine", sys.argv[1], "ggufv2")
for _ in range(12):
    engine = LlamaCppEngine()
    engine.load(plan, lambda what, share: None)
    engine.close(5.0)
print("let go", flush=True)
"""


def test_an_engine_is_let_go_before_it_has_done_anything() -> None:
    pytest.importorskip("xllamacpp")
    busy = [sys.executable, "-S", "-c", "import os\nwhile os.getppid() != 1: pass"]
    with contextlib.ExitStack() as stack:
        for _ in range(2 * (os.cpu_count() or 1)):
            stack.callback(stack.enter_context(subprocess.Popen(busy)).kill)
        done = subprocess.run([sys.executable, "-c", SCRIPT, str(MODEL)], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "let go\n", done.stderr[-2000:]
