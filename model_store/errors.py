"""The one exception that users see: a stable code, the field at fault, the cause and the cure."""

from __future__ import annotations


class InfiniteTalkError(Exception):
    """A failure that a user can understand and act on.

    Everything that bad input, a missing resource or a limit can cause is raised as this class, in every layer.
    The command line prints ``message`` on one line; the API shapes it into its error object.

    Args:
        code: stable, snake_case, never renamed once shipped (``no_face``, ``audio_silent``, ...).
        message: one or two plain sentences: what is wrong, and what to do about it. No secrets, no paths of the
            server's own files, no stack traces.
        param: the request field at fault (``image``, ``audio``, ``size``, ...), or None.
    """

    def __init__(self, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross the boundary between the worker and its engine process; keyword-only arguments need help to pickle.
        return (_rebuild, (type(self), self.code, self.message, self.param))


def _rebuild(kind: type[InfiniteTalkError], code: str, message: str, param: str | None) -> InfiniteTalkError:
    return kind(code, message, param=param)
