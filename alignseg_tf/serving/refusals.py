"""Why a request is refused."""


class RefusedError(Exception):
    """A request that is not served.

    Attributes:
        status: HTTP status of the answer.
        reason: one word, by which refusals are counted.
        message: for the client: what was expected and what was received.
        retry_after: seconds after which the same request may be served, or None.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message
        self.retry_after = retry_after
