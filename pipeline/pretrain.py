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
    from pipeline.report import describe, follow, told
    from pipeline.resume import kept_state
    from pipeline.tracking import stage_run
    from ssda.datasets.index import check_raw_files, read_index, read_sources
    from ssda.engine.checkpoints import save_network
    from ssda.engine.device import pick_device, place, set_up
    from ssda.engine.evaluation import validation_scores
    from ssda.engine.pretraining import imagenet_network, pretrain_steps
    from ssda.engine.speed import Speed
    from ssda.engine.training import create_optimiser
    from ssda.files import write_json
    from ssda.networks.normalisation import synchronised
    from ssda.processes import joined, rank

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

    with (
        joined(device),
        kept_state("pretrain", params, PRETRAINED) as kept,
        stage_run("pretrain", params, kept.journal) as run,
    ):
        run.tag("device", device.type)
        network = synchronised(
            place(imagenet_network(params, space.num_classes), device, params.compute)
        )
        optimiser = create_optimiser(network, settings.optimiser)
        progress = kept.restore({"network": network}, optimiser)
        if rank() == 0:
            command.say(
                f"pretrain: {settings.iterations} steps of {settings.batch_size} source images, "
                f"out of {sum(len(source.records) for source in sources)}; "
                f"{describe(network, params)}"
            )
        scores = follow(
            pretrain_steps(network, sources, params, progress),
            settings.iterations,
            params,
            run,
            space,
            validate,
            settings.validate_every,
            METRICS / "pretrain",
            kept,
            Speed(settings.batch_size, device),
        )
        if rank() > 0:
            return
        save_network(PRETRAINED, network, params.model, space)
        write_json(METRICS / "pretrain.json", {"pretrain": scores})
    command.say(f"pretrain: {told(scores)}; network in {PRETRAINED}")
    command.say_next("python -m pipeline.adapt")


if __name__ == "__main__":
    command.run("pretrain", pretrain, __doc__, trains=True)
