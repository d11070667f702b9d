"""Stage adapt: joint statistical and structural adaptation. The teacher is the result."""

from __future__ import annotations

from pathlib import Path

from pipeline import command, paths
from ssda.params import Params


def adapt(params: Params) -> None:
    """Adapt the pretrained network; writes the teacher, the student and the curves.

    Goes on where an earlier start was stopped. Raises ValueError for a user's mistake,
    FloatingPointError where training diverges.
    """
    import torch

    from pipeline.checks.preflight import check_start
    from pipeline.training.loop import describe, told, training
    from ssda.datasets.index import check_raw_files, class_frequencies, read_index, read_sources
    from ssda.engine.adapting import adapt_steps, start_networks
    from ssda.engine.checkpoints import load_network, save_network
    from ssda.engine.device import pick_device, place, set_up
    from ssda.engine.evaluation import label_free_score, validation_scores
    from ssda.engine.training import create_optimiser
    from ssda.files import write_json
    from ssda.method.trucrf import describe_form
    from ssda.networks.normalisation import synchronised
    from ssda.processes import rank

    settings = params.adapt
    check_start(params)
    device = pick_device(params.runtime.device)
    set_up(device, params.compute)
    sources = read_sources(paths.SOURCES)
    target = read_index(paths.TARGET_TRAIN)
    validation = read_index(paths.TARGET_VALIDATION)
    for index in (*sources, target, validation):
        check_raw_files(index)
    frequencies = torch.from_numpy(class_frequencies(sources))
    space = sources[0].space
    student, _ = load_network(Path(settings.start or paths.PRETRAINED), params.model)

    def validate() -> dict[str, float | None]:
        pair = [networks.teacher, networks.student]
        teacher, student = validation_scores(pair, validation, params)
        return {
            "validation_miou": teacher,
            "validation_miou_student": student,
            "label_free_score": label_free_score(networks.teacher, target, frequencies, params),
        }

    images = 2 * settings.batch_size
    with training("adapt", params, space, device, images, paths.ADAPTED) as stage:
        student = synchronised(place(student, device, params.compute))
        networks = start_networks(student, target, params)
        optimiser = create_optimiser(networks.student, settings.optimiser, networks.projector)
        progress = stage.kept.restore(networks.state(), optimiser)
        if rank() == 0:
            crf = f", TruCRF by its {describe_form(device)}" if settings.losses.trucrf > 0 else ""
            command.say(
                f"adapt: {settings.iterations} steps of {settings.batch_size} source and "
                f"{settings.batch_size} target images, out of "
                f"{sum(len(source.records) for source in sources)} and {len(target.records)}; "
                f"{describe(networks.student, params)}{crf}"
            )
        steps = adapt_steps(networks, sources, target, params, space, progress)
        scores = stage.follow(steps, validate)
        if rank() > 0:
            return
        for path, network in (
            (paths.STUDENT, networks.student),
            (paths.ADAPTED, networks.teacher),
        ):
            save_network(path, network, params.model, space, params.images.target_size)
        write_json(paths.ADAPTED_SCORES, {"adapt": scores})
        stage.run.model(paths.ADAPTED, params.runtime.register_as)
    command.say(f"adapt: {told(scores)}; network in {paths.ADAPTED}")
    command.say_next("python -m pipeline.evaluate")


if __name__ == "__main__":
    command.run("adapt", adapt, __doc__, trains=True)
