"""Why a request is not served, as the client is told and as it is counted."""


class RefusedError(Exception):
    """A request that is not served.

    Attributes:
        status: of the answer.
        reason: a word, by which refusals are counted.
        message: for the client: what was expected and what was received.
        retry_after: seconds after which the same request may be served, or None.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
