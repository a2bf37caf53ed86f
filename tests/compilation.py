"""How JAX compiles in the tests, and in the processes that they start.

Most of the time of the tests goes into compilation. Programs as small as these are
compiled faster in one piece than in many, and each one only once: by one of the
workers, by a process that a test starts, or by the run before. The compiler does its
quick optimizations only, unless XLA_FLAGS=--xla_backend_optimization_level=3 asks for
all, as .ci/run does once. (Level 0 rounds some steps in another way: it has no fused
multiply-add.)
"""

import contextlib
import os
import subprocess
import threading
from pathlib import Path

_CACHE = Path(__file__).parents[1] / ".pytest_cache" / "compiled"
_FLAGS = ["--xla_cpu_parallel_codegen_split_count=1"]
_FLAGS += ["--xla_backend_optimization_level=1", os.environ.get("XLA_FLAGS", "")]

ENVIRONMENT = {
    "XLA_FLAGS": " ".join(_FLAGS),
    "JAX_COMPILATION_CACHE_DIR": os.environ.get(
        "JAX_COMPILATION_CACHE_DIR", str(_CACHE)
    ),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


@contextlib.contextmanager
def running(command, **environment):
    """Runs an example in a process, which leaves its compiled programs to the next."""
    environment = {"JAX_PLATFORMS": "cpu", **ENVIRONMENT, **environment}
    if "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    watchdog = threading.Timer(120, process.kill)  # so that a hang ends the test
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()
