from pathlib import Path

import pytest
import torch

from research.label_free import label_free_indicators
from ssda.engine.evaluation import label_free_score
from ssda.networks.segmenter import Segmenter
from tests.conftest import SMALL_NETWORK, make_model, make_params, unlabelled_index


def test_the_score_among_the_indicators_is_the_one_that_the_pipeline_logs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Segmenter(make_model(SMALL_NETWORK), 5).eval()
    index = unlabelled_index(tmp_path, torch.randint(0, 256, (5, 3, 64, 96), dtype=torch.uint8))
    params = make_params({"images.target_size": None})
    frequencies = torch.tensor([0.2, 0.2, 0.2, 0.35, 0.05])
    indicators = label_free_indicators(network, index, frequencies, params)
    assert indicators["class_shift"] > 0.0
    score = label_free_score(network, index, frequencies, params)
    assert indicators["label_free_score"] == pytest.approx(score, rel=1e-4)
