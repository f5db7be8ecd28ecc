"""The error tree of mlc. The class chooses the exit code; the hint is something a person can type.

MlcError(message, *, hint)      exit code
├─ UsageError                   2   BadParameter, BadRecipe, BadInputFile (line, column)
├─ NotFound                     3   RefNotFound, AmbiguousId, ObjectNotFound, InputNotFound
├─ GateRefused                  4   the verdict is attached
├─ OverLimit                    5   `diff --exit-code`
├─ Incompatible                 6   ShapeMismatch, VocabularyMismatch, NoMergeBase
├─ IntegrityError               7   HashMismatch, MissingObject, CorruptRecord, BadSignature
├─ RemoteError                  8   Unreachable, Unauthorised, WorkersFailed, NeedsExtra
├─ Busy                         9   Locked, RefMoved, StalePlan
└─ CheckFailed                  10  the operation ran, but not to its own satisfaction
Interrupted                     130
Leaf classes that only one module raises live in that module.
"""

from __future__ import annotations

from typing import Any, ClassVar


class MlcError(Exception):
    """Base of every error a user may see: one sentence, one next step, one exit code."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details  # extra facts for --json (verdict, candidates, line, ...)

    @property
    def kind(self) -> str:
        """The class name: the stable word that scripts match on."""
        return type(self).__name__


class UsageError(MlcError):
    """What was typed, or a file that was given, is not valid."""

    exit_code = 2


class BadParameter(UsageError):
    """An option or argument has a value that cannot work."""


class BadRecipe(UsageError):
    """A recipe, policy or mlc.toml file is invalid; details carry `line` and `column` where known."""


class BadInputFile(UsageError):
    """A data or weight file is invalid; details carry `path` and `line` where known."""


class NotFound(MlcError):
    """A rev, object or file does not exist, or a name is ambiguous."""

    exit_code = 3


class RefNotFound(NotFound):
    """No branch, tag, alias or commit answers to this name."""


class AmbiguousId(NotFound):
    """A prefix fits several commits; details carry `candidates`."""


class InputNotFound(NotFound):
    """A path given on the command line does not exist."""


class GateRefused(MlcError):
    """The policy said no. Nothing moved; details carry `verdict` and `commit`."""

    exit_code = 4


class OverLimit(MlcError):
    """`diff --exit-code`: the difference is over the limit that was asked for."""

    exit_code = 5


class Incompatible(MlcError):
    """Two models, or a model and an operation, do not fit each other."""

    exit_code = 6


class ShapeMismatch(Incompatible):
    """A tensor has not the shape, dtype or name that is needed."""


class VocabularyMismatch(Incompatible):
    """A tokenizer does not fit the model's embedding or the other model's tokenizer."""


class IntegrityError(MlcError):
    """Stored bytes are not what their name promises."""

    exit_code = 7


class HashMismatch(IntegrityError):
    """Bytes were read whose digest differs from the one they are stored under."""


class MissingObject(IntegrityError):
    """History names an object that the registry no longer holds."""


class CorruptRecord(IntegrityError):
    """A journal, seal, pack or record cannot be parsed or breaks the chain."""


class RemoteError(MlcError):
    """Something outside this machine, or an optional component, is not there."""

    exit_code = 8


class NeedsExtra(RemoteError):
    """An optional dependency is not installed."""


class Busy(MlcError):
    """Somebody else holds the lock, or the world moved since the plan was made."""

    exit_code = 9


class Locked(Busy):
    """The lock was not free within the limit; the message names the owner."""


class RefMoved(Busy):
    """Compare-and-swap failed: the ref is not where it was expected."""


class StalePlan(Busy):
    """What a plan or a stopped run was based on has changed since."""


class CheckFailed(MlcError):
    """The operation ran but its own check failed; nothing was committed. Details carry `check`."""

    exit_code = 10


class Interrupted(MlcError):
    """Stopped by the user; details carry `run` when the work can be resumed."""

    exit_code = 130
