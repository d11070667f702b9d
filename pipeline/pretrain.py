"""Stage pretrain: the source alone. It is the baseline and the start of adaptation."""

from __future__ import annotations

from pipeline import command
from pipeline.paths import METRICS, PRETRAINED, SOURCES, TARGET_VALIDATION
from ssda.params import Params


def pretrain(params: Params) -> None:
    """Train on the labelled source; writes models/pretrained.safetensors and its curves.

    Goes on where an earlier start was stopped. Raises ValueError for a user's mistake,
    FloatingPointError where training diverges.
    """
    from pipeline.training.loop import describe, told, training
    from ssda.datasets.index import check_raw_files, read_index, read_sources
    from ssda.engine.checkpoints import save_network
    from ssda.engine.device import pick_device, place, set_up
    from ssda.engine.evaluation import validation_scores
    from ssda.engine.pretraining import imagenet_network, pretrain_steps
    from ssda.engine.training import create_optimiser
    from ssda.files import write_json
    from ssda.networks.normalisation import synchronised
    from ssda.processes import rank

    settings = params.pretrain
    device = pick_device(params.runtime.device)
    set_up(device, params.compute)
    sources = read_sources(SOURCES)
    validation = read_index(TARGET_VALIDATION)
    for index in (*sources, validation):
        check_raw_files(index)
    space = sources[0].space

    def validate() -> dict[str, float | None]:
        (score,) = validation_scores([network], validation, params)
        return {"validation_miou": score}

    with training("pretrain", params, space, device, settings.batch_size, PRETRAINED) as stage:
        network = synchronised(
            place(imagenet_network(params, space.num_classes), device, params.compute)
        )
        optimiser = create_optimiser(network, settings.optimiser)
        progress = stage.kept.restore({"network": network}, optimiser)
        if rank() == 0:
            command.say(
                f"pretrain: {settings.iterations} steps of {settings.batch_size} source images, "
                f"out of {sum(len(source.records) for source in sources)}; "
                f"{describe(network, params)}"
            )
        scores = stage.follow(pretrain_steps(network, sources, params, progress), validate)
        if rank() > 0:
            return
        save_network(PRETRAINED, network, params.model, space, params.images.target_size)
        write_json(METRICS / "pretrain.json", {"pretrain": scores})
    command.say(f"pretrain: {told(scores)}; network in {PRETRAINED}")
    command.say_next("python -m pipeline.adapt")


if __name__ == "__main__":
    command.run("pretrain", pretrain, __doc__, trains=True)
