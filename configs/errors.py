"""The errors that a user can meet, in one tree.

UserError                 the user must change something: one message, no traceback, exit code 2
 +- PresetError           a preset that cannot be used; lists every problem
 +- SourceError           a source that cannot be used
 +- StartPointError       a model that cannot be started from
 +- DiskError             the disk refuses a write; what was written is intact
 |   +- DiskFull          it has no space left
 +- StreamDamaged         rows are not those that were written; they can be made again
 +- CheckpointError       a checkpoint could not be written, or none can be read
 |   +- Damaged           one checkpoint file; the previous generation may be intact
 +- SavingFailed          saving failed several times in a row: exit code 1, as for a lost machine
 +- ErrorOfOneRank        not every rank of a job meets it: each that does says it

Retryable                 a temporary failure (the network): retried, and shown while it lasts
ProducerDied              the process that reads the sources cannot be kept alive: a defect
"""


class UserError(ValueError):
    """An error that the user must fix; `main` prints it without a traceback, with `exit_code`."""

    exit_code = 2


class PresetError(UserError):
    """A preset that cannot be used; the message lists every problem, one block each."""


class SourceError(UserError):
    """A source that cannot be used; the message says what is wrong, where, and what to do."""


class StartPointError(UserError):
    """A model that cannot be started from; the message says what is wrong, where, and what to do."""


class DiskError(UserError):
    """The disk refuses a write: it fails, is read-only or is gone. What was written before is intact."""


class DiskFull(DiskError):
    """The disk has no space left. What was written before is intact."""


class StreamDamaged(UserError):
    """Rows of the stream do not match their checksum; they can be made again from the sources."""


class CheckpointError(UserError):
    """A checkpoint could not be written, or none could be read.

    The message says what is wrong, where, and what to do.
    """


class Damaged(CheckpointError):
    """One checkpoint file cannot be used; the previous generation may be intact."""


class SavingFailed(UserError):
    """Checkpoints could not be written several times in a row."""

    exit_code = 1  # as for a lost machine


class ErrorOfOneRank(UserError):
    """What not every rank of a job meets: each that does says it, other errors the first one alone."""


class Retryable(Exception):
    """A temporary failure (the network); the message is the reason shown to the user."""


class ProducerDied(Exception):
    """The data process was started several times and ended each time without a new row."""
