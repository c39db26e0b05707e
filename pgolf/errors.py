"""The exceptions of pgolf, each with the exit code that the command line returns.

    PgolfError                3
    ├── UsageError            2   an option or argument that cannot be read
    │   └── SettingError      2   a setting that no tensor of its pattern can take
    ├── CheckpointError       3   not a checkpoint, unsafe pickle, NaN weights, wrong keys
    ├── ModelError            3   the user's model file: import, construction, logits
    ├── DataError             3   token shards, tokenizers, byte sidecars
    ├── CurvatureError        3   calibration went wrong, or does not belong to this model
    ├── ArtifactError         3   truncated, foreign or damaged artifact
    ├── DeviceError           3   no CUDA device, or no triton, where one was asked for
    ├── MemoryLimitError      3   a tensor needs more memory than there is
    ├── PluginError           3   a part that another package offers cannot be loaded, or breaks its promise
    ├── MissingExtraError     3   a package that comes with an extra of pgolf is not installed
    ├── BudgetError           4   cannot be made to fit
    ├── AuditError            4   the audit found that a score is not honest
    └── StoppedError          5   `pgolf train --stop-if` ended a run

A message is one line, names the thing and the mend. Anything that is not a PgolfError is a bug in pgolf.
"""


def printable(text: str) -> str:
    """One line in which every other character is an escape sequence of Python, as "\\x1b"."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class PgolfError(Exception):
    """Root of every error that pgolf raises on purpose.

    Its text is one line of printable characters, whatever names a stranger's file brought into it: what moves a
    terminal's cursor or cannot be encoded is shown as an escape sequence of Python.
    """

    exit_code = 3
    told_elsewhere = False  # whether another process of the job prints it

    def __str__(self) -> str:
        return printable(super().__str__())


class UsageError(PgolfError):
    """An option, pattern or size that cannot be understood."""

    exit_code = 2


class SettingError(UsageError):
    """A setting of --set that none of the tensors it matches can take."""


class CheckpointError(PgolfError):
    """The checkpoint cannot be read, or holds what must not be packed."""


class ModelError(PgolfError):
    """The user's model code cannot be loaded, or does not fit the weights."""


class DataError(PgolfError):
    """A token shard, tokenizer or byte sidecar is malformed."""


class CurvatureError(PgolfError):
    """Calibration failed, or a curvature file does not belong to this checkpoint."""


class ArtifactError(PgolfError):
    """The artifact is truncated, foreign or damaged."""


class DeviceError(PgolfError):
    """A device was asked for that is not here, or lacks what its kernels need."""


class MemoryLimitError(PgolfError):
    """There is not enough memory for the work on a tensor."""


class PluginError(PgolfError):
    """What another package offers by an entry point cannot be loaded, or does not do what it must."""


class MissingExtraError(PgolfError, ModuleNotFoundError):
    """A package that only some of pgolf needs is not installed; says which extra brings it."""


class BudgetError(PgolfError):
    """The model cannot be made to fit the byte budget."""

    exit_code = 4


class AuditError(PgolfError):
    """A score is not what it claims to be."""

    exit_code = 4


class StoppedError(PgolfError):
    """A run was ended before its time, because of what it was foreseen to come to; it is saved and can go on."""

    exit_code = 5


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Python's, numpy's or torch's says so; torch's allocator of the CPU has no type for it."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )
