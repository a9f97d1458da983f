"""The root of all errors a user can act on."""


class DebutError(Exception):
    """Something a user can mend.

    `code` is stable and meant for programs; `detail` is a sentence that says what was wrong and what to do.
    Subclasses set a default `code`; one class may raise several codes.
    """

    code = "debut_error"

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        if code is not None:
            self.code = code
