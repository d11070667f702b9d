"""Where stages leave what other stages read; relative to the working directory."""

from pathlib import Path

INVENTORY = Path("data/inventory")
CONVERTED = Path("data/converted")
SOURCES = CONVERTED / "sources"
TARGET_TRAIN = CONVERTED / "target/train"
TARGET_VALIDATION = CONVERTED / "target/validation"
TARGET_REPORT = CONVERTED / "target/report"
PRETRAINED = Path("models/pretrained.safetensors")
STUDENT = Path("models/student.safetensors")
ADAPTED = Path("models/adapted.safetensors")
METRICS = Path("metrics")
ADAPTED_SCORES = METRICS / "adapt.json"
