"""LARP: towers for audio and captions, trained so that tracks of one playlist come near each other."""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read once, when huggingface_hub is imported
