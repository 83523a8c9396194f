"""The errors that a user can meet, in one tree.

UserError                 the user must change something: one message without a traceback, exit code 2
 +- PresetError           a preset that cannot be used; lists every problem
 +- SourceError           a source that cannot be used
 +- DiskFull              no room for the stream; what was written is intact
 +- CheckpointError       a checkpoint could not be written, or none can be read
 |   +- Damaged           one checkpoint file; the generation before may be intact
 +- SavingFailed          the disk refused again and again: exit code 1, as for a lost machine

Retryable                 trouble that may pass by itself (the network): waited for, and shown while it lasts
ProducerDied              the process that reads the sources cannot be kept alive: a defect
"""


class UserError(ValueError):
    """Something the user must change. `main` prints the message without a traceback and exits with `exit_code`."""

    exit_code = 2


class PresetError(UserError):
    """A preset that cannot be used; the message lists every problem, one block each."""


class SourceError(UserError):
    """A source that cannot be used until the user changes something: what, where, what to do."""


class DiskFull(UserError):
    """The disk has no room left. What was written before is intact."""


class CheckpointError(UserError):
    """A checkpoint could not be written, or none could be read; the message says what, where, and what to do."""


class Damaged(CheckpointError):
    """One file cannot be used; the generation before may be."""


class SavingFailed(UserError):
    """The disk refused again and again."""

    exit_code = 1  # of a machine that is lost to us


class Retryable(Exception):
    """Trouble that may pass by itself (the network); the message is the reason shown to the user."""


class ProducerDied(Exception):
    """The data process was started several times and ended each time without a new row."""
