"""Errors a user can mend.

Each message says what is wrong, where, and what to do; the command line prints it on one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest(word: str, known: Sequence[str]) -> str:
    """For a message about an unknown word: which of the known ones may be meant, or nothing."""
    match = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {match[0]}?)" if match else ""


class DsmrError(Exception):
    """Base of every error that this package raises for input, files or machines it cannot work with."""


class ScheduleError(DsmrError):
    """A schedule that does not exist, does not parse, or does not fit the model or its budget."""


class CheckpointError(DsmrError):
    """A checkpoint folder that is missing, damaged, or of another architecture."""


class BundleError(DsmrError):
    """A bundle that is missing, damaged, or of a format this version does not read."""


class StateError(DsmrError):
    """A saved state that is missing, damaged, or of another bundle or graph."""


class GraphError(DsmrError):
    """A graph that this onnxruntime cannot run, or whose interface is not what the manifest says."""


class MidiError(DsmrError):
    """MIDI data that cannot be read as a piano performance."""


class PortError(DsmrError):
    """MIDI ports that cannot be had here, or a port that is not there."""


class DataError(DsmrError):
    """A data set that is missing, empty, or laid out in an unknown way."""


class OutputExistsError(DsmrError):
    """An output that is already there and would be overwritten."""


class OutputError(DsmrError):
    """An output that could not be written (disk full, no permission)."""


class ParityError(DsmrError):
    """An exported graph that does not agree with its reference within the gates."""


class TargetError(DsmrError):
    """A device profile that is unknown or not valid."""


class TrainingError(DsmrError):
    """A training run that cannot start, go on, or be resumed."""


class StoppedError(TrainingError):
    """A training run that a signal ended, saved, before it was as long as asked for."""


class FailedRunError(TrainingError):
    """A training run that broke down by itself, in loss or in memory: another one may well not."""
