"""What a plugin is: a class with a name, a configuration, needs, and `run(context) -> Result`.

This module stays light: it is imported whenever plugins are listed.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from workbench.context import Context
    from workbench.datasets.protocol import Dataset
    from workbench.results import Result
    from workbench.subjects.protocol import Subject

API = 1  # version of the hook specification, of `Plugin` and of the sources; what was made for another is refused
PLUGIN_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Option:
    """What a person may know of a configuration field: ``k: Annotated[int, Option("neurons kept", ge=1)] = 1``.

    Attributes
    ----------
    help : str
        What it is.
    unit : str, optional
        Of its value.
    ge, gt, le, lt : float, optional
        Range of a number, or of each number of a list.
    """

    help: str
    unit: str | None = None
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None


@dataclass(frozen=True)
class NoConfig:
    """The configuration of a plugin that has no options."""


@dataclass(frozen=True)
class Needs:
    """What a plugin reads; each is given on the command line or comes from the plugin's own default.

    Attributes
    ----------
    store, labels, subject, dictionary, data : bool
        An activation store, labels in it, a live subject model, a dictionary, a dataset.
    """

    store: bool = False
    labels: bool = False
    subject: bool = False
    dictionary: bool = False
    data: bool = False

    def __str__(self) -> str:
        return ", ".join(name for name, needed in vars(self).items() if needed) or "nothing"


@dataclass(frozen=True)
class CaptureDefault:
    """What a plugin captures where no store was given (see `workbench.capture`).

    Attributes
    ----------
    model, data : str
        Addresses of the subject model and the dataset.
    hooks : tuple of str
        Hook points or patterns.
    rows : int
        How many rows.
    options : mapping
        Further keyword arguments of `workbench.capture`.
    """

    model: str
    data: str
    hooks: tuple[str, ...]
    rows: int
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunDefault:
    """The run that gives a plugin its dictionary where none was given.

    Attributes
    ----------
    plugin : str
        Name of the plugin that makes it.
    options : mapping
        Its configuration.
    """

    plugin: str
    options: Mapping[str, Any] = field(default_factory=dict)


class Plugin(ABC):
    """A method: reads what it needs from a context and returns a result.

    Attributes
    ----------
    name : str
        Lower-case words joined by hyphens; ``workbench run NAME``.
    help : str
        One line: what it answers.
    version : str
        Part of a run's identity: change it when numbers change.
    api : int
        The version of this interface that the plugin was written for (`API`); state it as a number, so that it stays
        true when the workbench moves on. Who does not say was written for the first.
    Config : type
        A frozen dataclass with `Option` annotations.
    needs : Needs
        What it reads.
    default_model, default_data : str, optional
        Addresses used where none was given and no store says them.
    default_capture : CaptureDefault, optional
        Captured where it needs a store and none was given.
    distributed : bool
        Whether several processes (torchrun) can share a run: `run` is then called on each, with `context.ranks`, and
        the result of the first one counts.
    live : bool
        Whether it can do without a store where a model and data are given, and reads from the subject itself.
    default_dictionary : RunDefault, optional
        Run where it needs a dictionary and none was given.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    version: ClassVar[str] = "1"
    api: ClassVar[int] = 1
    Config: ClassVar[type] = NoConfig
    needs: ClassVar[Needs] = Needs()
    default_model: ClassVar[str | None] = None
    default_data: ClassVar[str | None] = None
    default_capture: ClassVar[CaptureDefault | None] = None
    live: ClassVar[bool] = False
    distributed: ClassVar[bool] = False
    default_dictionary: ClassVar[RunDefault | None] = None

    @abstractmethod
    def run(self, context: Context) -> Result:
        """Do the work; long work shows ``context.progress`` and keeps what it must not lose in ``context.work``."""


@dataclass(frozen=True)
class LoadOptions:
    """How a subject model is loaded.

    Attributes
    ----------
    device : str
        ``auto`` (CUDA if there is one, else CPU), ``cpu``, ``cuda:N``.
    dtype : str, optional
        ``float32``, ``float64``, ``float16`` or ``bfloat16``; None keeps the checkpoint's.
    device_map : str, optional
        Spread a large model, as accelerate understands it (``auto``).
    """

    device: str = "auto"
    dtype: str | None = None
    device_map: str | None = None


@dataclass(frozen=True)
class SubjectSource:
    """A kind of address for subject models.

    Attributes
    ----------
    scheme : str
        The part before the colon: ``zoo`` in ``zoo:pycode``.
    help : str
        One line.
    load : callable
        ``load(rest, options)`` loads the model named after the colon.
    names : callable
        Lists the names that can be listed; may be empty.
    api : int
        The version of this interface that it was written for, as in `Plugin`.
    """

    scheme: str
    help: str
    load: Callable[[str, LoadOptions], Subject]
    names: Callable[[], list[str]] = list
    api: int = 1


def accepts_no_path(path: Path) -> bool:
    """Recognise no file or folder: for datasets that are reached by name only."""
    return False


@dataclass(frozen=True)
class DatasetSource:
    """A kind of dataset.

    Attributes
    ----------
    name : str
        A full name (``python-stdlib``) or the part before a colon (``jsonl`` in ``jsonl:corpus.jsonl``).
    help : str
        One line.
    load : callable
        ``load(rest)`` opens the dataset; `rest` is what follows the colon, or "".
    accepts : callable
        ``accepts(path)`` says whether an existing file or folder given without a scheme looks like this kind.
    api : int
        The version of this interface that it was written for, as in `Plugin`.
    """

    name: str
    help: str
    load: Callable[[str], Dataset]
    accepts: Callable[[Path], bool] = accepts_no_path
    api: int = 1
