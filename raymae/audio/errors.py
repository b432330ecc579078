"""Why a recording can't be used."""

from __future__ import annotations


class AudioError(ValueError):
    """Why a recording can't be used, in one line and without its path."""


class UnreachableError(AudioError, ConnectionError):
    """The recording's storage still fails temporarily after retries; it may be readable later."""


class SilentError(AudioError):
    """The recording holds no sound: no band of its log-mel changes."""

    def __init__(self) -> None:
        super().__init__("silent")


class TooLongError(AudioError):
    """The recording is too long to be read at once."""


class NoAnswerError(AudioError):
    """Neither the recording nor an error came: of its storage, or because nothing happened at all. It may pass."""


class TimeLimitError(AudioError):
    """Decoding takes more computing than is allowed."""
