"""From a name to a finished subject: train it, measure it, write its folder."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import nn

from workbench.errors import UserError, nearest
from workbench.zoo import calendar, modular, pycode, shapes_clip
from workbench.zoo.shelf import FILES
from workbench.zoo.trainer import CHECKPOINT, Lesson, Progress, Recipe, train


class Course(Protocol):
    """What a module that teaches one subject offers."""

    RECIPE: Recipe
    ABOUT: str

    def make_lesson(self, recipe: Recipe) -> Lesson:
        """Return what is to be learned."""

    def measure(self, subject: Any, lesson: Lesson) -> dict[str, Any]:
        """Return what the record says of the finished subject."""


COURSES: dict[str, Course] = {
    "calendar": calendar,
    "modular": modular,
    "pycode": pycode,
    "shapes-clip": shapes_clip,
}


def recipe_of(name: str, *, seed: int | None = None, steps: int | None = None) -> Recipe:
    """Return how a subject is trained.

    Parameters
    ----------
    name : str
        One of `COURSES`.
    seed, steps : int, optional
        Instead of the recipe's own; the shipped subjects were trained without either.

    Raises
    ------
    UserError
        For an unknown name, a seed below 0, or no step.
    """
    if name not in COURSES:
        raise UserError(f"no zoo subject {name!r}; nearest: {nearest(name, COURSES)} (all: workbench zoo list)")
    own = COURSES[name].RECIPE
    recipe = replace(own, seed=own.seed if seed is None else seed, steps=own.steps if steps is None else steps)
    if recipe.steps < 1:
        raise UserError(f"steps {recipe.steps}: must be at least 1")
    if recipe.seed < 0:
        raise UserError(f"seed {recipe.seed}: must be 0 or more")
    return recipe


def train_zoo(
    name: str, out: Path, recipe: Recipe | None = None, *, on_step: Callable[[Progress], None] | None = None
) -> dict[str, Any]:
    """Train a zoo subject from scratch and write its folder; an interrupted training continues.

    Parameters
    ----------
    name : str
        One of `COURSES`.
    out : Path
        Receives ``model.safetensors``, ``tokenizer.json``, ``architecture.json`` and ``record.json``; until then a
        checkpoint lies there. Load it with ``zoo:OUT``.
    recipe : Recipe, optional
        By default `recipe_of` the name.
    on_step : function, optional
        See `train`.

    Returns
    -------
    dict
        The record of the training.

    Raises
    ------
    UserError
        For an unknown name, and where `out` is a file, cannot be made, or holds a finished subject, the checkpoint of
        another training or anything else.
    """
    recipe = recipe or recipe_of(name)
    make_folder(out)
    lesson = COURSES[name].make_lesson(recipe)
    model, progress = train(lesson, out, on_step=on_step)
    return finish(name, out, lesson, model, progress)


def make_folder(out: Path) -> None:
    """Make the folder of a training; refuse one that holds anything but a training that was interrupted."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = sorted(path.name for path in out.iterdir())
    except (FileExistsError, NotADirectoryError):
        file = next((path for path in (out, *out.parents) if path.is_file()), out)
        raise UserError(f"{file} is a file: --out must be a folder, new, empty or of an unfinished training") from None
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another --out") from error
    if FILES[0] in held:
        raise UserError(f"{out} holds a finished subject: give another --out, or delete it first")
    if held and CHECKPOINT not in held and held != [Path(CHECKPOINT).with_suffix(".part").name]:
        raise UserError(
            f"{out} holds something else than a training ({held[0]!r}, and no {CHECKPOINT}): give another --out"
        )


def finish(name: str, out: Path, lesson: Lesson, model: nn.Module, progress: Progress) -> dict[str, Any]:
    """Write a trained subject's folder: weights rounded to float16, and the record of what those weights can do."""
    rounded = {key: tensor.half().contiguous() for key, tensor in sorted(model.state_dict().items())}
    model.load_state_dict({key: tensor.float() for key, tensor in rounded.items()})
    subject = lesson.as_subject(f"zoo:{name}", model)
    course = COURSES[name]
    record = {
        "name": f"zoo:{name}",
        "about": course.ABOUT,
        "recipe": asdict(lesson.recipe),
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "stored_as": "float16",
        "fingerprint": subject.fingerprint(),
        "lesson_fingerprint": lesson.fingerprint(),
        **course.measure(subject, lesson),
        "training": {
            "seconds": round(progress.seconds),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        },
        "losses": {"unit": f"{lesson.loss_unit}, mean of the steps since the last", "curve": thinned(progress.losses)},
    }
    lesson.write_architecture(out / "architecture.json")
    subject.save_tokenizer(out)
    (out / "record.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    save_file(rounded, out / "model.part", metadata={"name": name})
    (out / "model.part").replace(out / FILES[0])  # last, so that a folder with weights is a whole one
    (out / CHECKPOINT).unlink(missing_ok=True)
    return record


def thinned(losses: list[tuple[int, float]], n_points: int = 80) -> list[tuple[int, float]]:
    """Return the curve as about `n_points` means over equal numbers of steps."""
    width = max(1, len(losses) // n_points)
    parts = [losses[i : i + width] for i in range(0, len(losses), width)]
    return [(part[-1][0], round(sum(loss for _, loss in part) / len(part), 5)) for part in parts]
