import numpy as np
import pytest
import torch
from torch import nn

from ssda.networks.encoders import Encoder, load_imagenet_weights
from ssda.networks.heads import DAFormerHead
from ssda.networks.segmenter import Segmenter


@pytest.fixture(scope="module")
def network() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter("tf_efficientnet_lite0", 16, 0.5, 19).eval()


def test_logits_have_a_quarter_of_the_size(network: Segmenter) -> None:
    assert network(torch.rand(2, 3, 64, 96)).shape == (2, 19, 16, 24)


def test_stochastic_passes_equal_dropping_the_embedding(network: Segmenter) -> None:
    embedding = torch.rand(2, 16, 4, 6)
    masks = network.draw_masks(3, [np.random.default_rng(i) for i in range(2)])
    logits = network.classify(embedding, masks)
    for k in range(3):
        dropped = embedding * masks[k].view(2, 16, 1, 1)
        torch.testing.assert_close(logits[k], network.classifier(dropped))
    assert not torch.allclose(logits[0], logits[1])


def test_masks_drop_the_given_share_and_keep_the_mean(network: Segmenter) -> None:
    masks = network.draw_masks(500, [np.random.default_rng(0)])
    assert set(masks.unique().tolist()) == {0.0, 2.0}
    assert masks.mean().item() == pytest.approx(1.0, abs=0.05)


def test_masks_depend_on_the_sample_alone(network: Segmenter) -> None:
    alone = network.draw_masks(2, [np.random.default_rng(7)])
    among = network.draw_masks(2, [np.random.default_rng(i) for i in (3, 7)])
    assert torch.equal(alone[:, 0], among[:, 1])


def test_images_are_normalised_inside(network: Segmenter) -> None:
    images = torch.rand(1, 3, 64, 64)
    outside = network.encoder.network((images - 0.5) / 0.5)
    torch.testing.assert_close(network.encoder(images)[0], outside[0])


def test_head_has_the_parameters_of_its_description() -> None:
    channels, stages = 8, [4, 5, 6, 7]
    fused = 4 * channels
    embeddings = sum(c * channels + channels for c in stages)
    norm = 2
    pyramid = fused * channels + norm * channels
    pyramid += 3 * (9 * fused + norm * fused + fused * channels + norm * channels)
    bottleneck = 9 * fused * channels + norm * channels
    head = DAFormerHead(stages, channels)
    count = sum(p.numel() for p in head.parameters())
    assert count == embeddings + pyramid + bottleneck


def test_imagenet_weights_are_in_the_encoder() -> None:
    """A pretrained first layer has structure; its filters are far from a random draw."""
    encoder = Encoder("tf_efficientnet_lite0")
    before = encoder.network.conv_stem.weight.clone()
    load_imagenet_weights(encoder, "tf_efficientnet_lite0", None)
    weight = encoder.network.conv_stem.weight
    assert not torch.equal(before, weight)
    assert encoder.network.bn1.running_mean.abs().sum() > 0
    assert isinstance(encoder.network.bn1, nn.BatchNorm2d)


@pytest.mark.parametrize("name", ["no_such_encoder", "vit_tiny_patch16_224"])
def test_an_encoder_that_does_not_fit_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"model.encoder = '{name}'"):
        Encoder(name)


def test_weights_that_do_not_fit_are_named(tmp_path) -> None:
    from safetensors.torch import save_file

    encoder = Encoder("tf_efficientnet_lite0")
    path = tmp_path / "other.safetensors"
    with pytest.raises(ValueError, match="no such file"):
        load_imagenet_weights(encoder, "tf_efficientnet_lite0", str(path))
    save_file({"conv_stem.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="no tensor"):
        load_imagenet_weights(encoder, "tf_efficientnet_lite0", str(path))
    state = {k: v.clone() for k, v in encoder.network.state_dict().items()}
    save_file(state | {"conv_stem.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"conv_stem\.weight has shape"):
        load_imagenet_weights(encoder, "tf_efficientnet_lite0", str(path))
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="cannot be read"):
        load_imagenet_weights(encoder, "tf_efficientnet_lite0", str(path))
