"""Stage adapt: joint statistical and structural adaptation. The teacher is the result."""

from __future__ import annotations

from pathlib import Path

from pipeline import command
from pipeline.paths import (
    ADAPTED,
    METRICS,
    PRETRAINED,
    SOURCES,
    STUDENT,
    TARGET_TRAIN,
    TARGET_VALIDATION,
)
from ssda.params import Params


def adapt(params: Params) -> None:
    """Adapt the pretrained network; writes the teacher, the student and the curves.

    Goes on where an earlier start was stopped. Raises ValueError for a user's mistake,
    FloatingPointError where training diverges.
    """
    import torch

    from pipeline.preflight import check_start
    from pipeline.report import describe, follow, told
    from pipeline.resume import kept_state
    from pipeline.tracking import register_model, stage_run
    from ssda.datasets.index import check_raw_files, class_frequencies, read_index, read_sources
    from ssda.engine.adapting import adapt_steps, start_networks
    from ssda.engine.checkpoints import load_network, save_network
    from ssda.engine.device import pick_device, place, set_up
    from ssda.engine.evaluation import label_free_score, validation_scores
    from ssda.engine.speed import Speed
    from ssda.engine.training import create_optimiser
    from ssda.files import write_json
    from ssda.method.trucrf import describe_form
    from ssda.networks.normalisation import synchronised
    from ssda.processes import joined, rank

    settings = params.adapt
    check_start(params)
    device = pick_device(params.runtime.device)
    set_up(device, params.compute)
    sources = read_sources(SOURCES)
    target = read_index(TARGET_TRAIN)
    validation = read_index(TARGET_VALIDATION)
    for index in (*sources, target, validation):
        check_raw_files(index)
    frequencies = torch.from_numpy(class_frequencies(sources))
    space = sources[0].space
    student, _ = load_network(Path(settings.start or PRETRAINED), params.model)

    def validate() -> dict[str, float | None]:
        pair = [networks.teacher, networks.student]
        teacher, student = validation_scores(pair, validation, params)
        return {
            "validation_miou": teacher,
            "validation_miou_student": student,
            "label_free_score": label_free_score(networks.teacher, target, frequencies, params),
        }

    with (
        joined(device),
        kept_state("adapt", params, ADAPTED) as kept,
        stage_run("adapt", params, kept.journal) as run,
    ):
        run.tag("device", device.type)
        student = synchronised(place(student, device, params.compute))
        networks = start_networks(student, target, params)
        optimiser = create_optimiser(networks.student, settings.optimiser)
        progress = kept.restore(
            {
                "student": networks.student,
                "teacher": networks.teacher,
                "predicted shares": networks.predicted,
            },
            optimiser,
        )
        if rank() == 0:
            crf = f", TruCRF by its {describe_form(device)}" if settings.trucrf.weight > 0 else ""
            command.say(
                f"adapt: {settings.iterations} steps of {settings.batch_size} source and "
                f"{settings.batch_size} target images, out of "
                f"{sum(len(source.records) for source in sources)} and {len(target.records)}; "
                f"{describe(networks.student, params)}{crf}"
            )
        scores = follow(
            adapt_steps(networks, sources, target, params, space, progress),
            settings.iterations,
            params,
            run,
            space,
            validate,
            settings.validate_every,
            METRICS / "adapt",
            kept,
            Speed(2 * settings.batch_size, device),
        )
        if rank() > 0:
            return
        save_network(STUDENT, networks.student, params.model, space)
        save_network(ADAPTED, networks.teacher, params.model, space)
        write_json(METRICS / "adapt.json", {"adapt": scores})
        register_model(params, run, ADAPTED)
    command.say(f"adapt: {told(scores)}; network in {ADAPTED}")
    command.say_next("python -m pipeline.evaluate")


if __name__ == "__main__":
    command.run("adapt", adapt, __doc__, trains=True)
