"""Errors that a user can act on.

Everything a user can get wrong raises a subclass of `UserError`. Its message says what was got, what is valid and what
to do; command lines print it without a traceback and exit with status 2.
"""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in the input, not in the program. The message says what was got, what is valid and what to do.

    Example:
        >>> try:
        ...     lx.Plan.parse("loc@deep")
        ... except lx.UserError as error:
        ...     print(str(error).partition(",")[0])
        steering plan
    """


class PlanError(UserError):
    """A steering plan that cannot be parsed or does not fit the model or the vector file."""


class EstimatorError(UserError):
    """An estimator that is unknown, cannot be imported, or is given parameters that it does not take."""


class VectorFileError(UserError):
    """A vector file that is unreadable, damaged, or made for another model."""


class DataError(UserError):
    """Data that is missing, unreachable, or not what its hash or schema says."""


class LanguageError(UserError):
    """A language that is unknown, or needed and not given."""


class ModelError(UserError):
    """A model that cannot be steered or loaded as asked."""


class OutputError(UserError):
    """A file or folder that cannot be written."""


class ResultsError(UserError):
    """Result files that are missing, damaged or not comparable."""


class GateError(UserError):
    """Rules that cannot be read, or runs that a gate must not compare."""


class ArchiveError(UserError):
    """An archive that cannot be read, is damaged, or is not safe to unpack."""


class GitHubError(UserError):
    """What cannot be asked of GitHub: a token, pull request or artifact that is missing or refused."""


class TrainingError(UserError):
    """A training run that cannot be started, continued or kept as asked."""


class StudyError(UserError):
    """A study that cannot be read, whose stages do not fit together, or one of whose stages failed."""
