"""A model is let go on another thread than the one that loaded it, as happens when releases are swapped."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

LET_GO = """
import signal, sys, threading
from pathlib import Path
from index.models.onnxmodel import OnnxModel

models = [OnnxModel(Path(sys.argv[1]), 1)]
thread = threading.Thread(target=models.clear)
thread.start()
thread.join()
signal.signal(signal.SIGUSR1, lambda *_: print("alive"))
signal.raise_signal(signal.SIGUSR1)
"""


def test_a_signal_finds_its_stack_after_the_last_model_is_gone():
    model = next(ROOT.glob("tests/golden/format-*/release/matcher/matcher.onnx"))
    done = subprocess.run(
        [sys.executable, "-c", LET_GO, str(model)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
