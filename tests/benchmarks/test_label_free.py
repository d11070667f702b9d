from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks.label_free import label_free_indicators
from ssda.datasets.index import Index, Record
from ssda.engine.evaluation import label_free_score
from ssda.labels import CITYSCAPES
from ssda.networks.segmenter import Segmenter
from tests.conftest import make_model, make_params


def test_the_score_among_the_indicators_is_the_one_that_the_pipeline_logs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Segmenter(make_model({"model.channels": 8}), 5).eval()
    for i, noise in enumerate(np.random.default_rng(0).integers(0, 256, (5, 64, 96, 3), np.uint8)):
        cv2.imwrite(str(tmp_path / f"{i}.png"), noise)
    records = tuple(Record(f"{i}", f"{i}.png", 0, None, 96, 64, None) for i in range(5))
    index = Index(tmp_path, tmp_path, CITYSCAPES, records)
    params = make_params({"images.target_size": None})
    frequencies = torch.tensor([0.2, 0.2, 0.2, 0.35, 0.05])
    indicators = label_free_indicators(network, index, frequencies, params)
    assert indicators["class_shift"] > 0.0
    score = label_free_score(network, index, frequencies, params)
    assert indicators["label_free_score"] == pytest.approx(score, rel=1e-4)
