"""Where stages leave what other stages read; relative to the working directory."""

from pathlib import Path

INVENTORY = Path("data/inventory.json")
CONVERTED = Path("data/converted")
SOURCE_TRAIN = CONVERTED / "source/train"
TARGET_TRAIN = CONVERTED / "target/train"
TARGET_VALIDATION = CONVERTED / "target/validation"
TARGET_REPORT = CONVERTED / "target/report"
PRETRAINED = Path("models/pretrained.safetensors")
STUDENT = Path("models/student.safetensors")
ADAPTED = Path("models/adapted.safetensors")
METRICS = Path("metrics")
