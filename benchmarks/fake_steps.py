"""The whole of adaptation on a GPU that is not there, over made-up images on the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.fake_cuda import FakeCuda, fake_cuda, move
from ssda.datasets.batches import SourceBatch, TargetBatch
from ssda.engine import adapting
from ssda.labels import CITYSCAPES
from ssda.method.adaptation import Networks
from ssda.method.source import frozen_encoder
from ssda.method.subdomains import PredictedShares
from ssda.networks.encoders import Encoder
from ssda.networks.segmenter import Segmenter
from ssda.params import Params


def fake_networks(params: Params, gpu: FakeCuda) -> Networks:
    """What `start_networks` gives, on the GPU that is not there, without its new statistics."""
    with torch.device("meta"):
        student, teacher = (Segmenter(params.model, CITYSCAPES.num_classes) for _ in range(2))
        imagenet = Encoder(params.model) if params.adapt.losses.feature_distance > 0 else None
        predicted = PredictedShares(CITYSCAPES.num_classes)
    teacher.requires_grad_(False)
    for module in (student, teacher, imagenet, predicted):
        if module is not None:
            move(module, gpu)
    frozen = None if imagenet is None else frozen_encoder(imagenet)
    return Networks(student.train(), teacher.eval(), frozen, predicted)
