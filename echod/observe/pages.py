"""What `[admin]` answers: metrics, and whether echod lives and is ready.

Rules
    /metrics has the numbers, in the format that the client accepts: OpenMetrics, or Prometheus' text.
    /livez says 200 as long as a worker answers at all.
    /readyz says 200 while connections are welcome, 503 before the daemon is ready and from the first stop signal on.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from prometheus_client.exposition import choose_encoder

from echod.core.exchange import Page
from echod.observe.metrics import Metrics
from echod.observe.scoreboard import Column

if TYPE_CHECKING:
    from echod.observe.scoreboard import Scoreboard


_OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Pages:
    """All pages of one daemon."""

    def __init__(self, board: Scoreboard) -> None:
        self._board = board
        self._metrics = Metrics(board)

    def __call__(self, path: str, accept: str) -> Page:
        """Return the page at `path`, in a format that the value of an Accept header asks for."""
        match path:
            case "/metrics":
                return self._numbers(accept)
            case "/livez":
                return Page(HTTPStatus.OK, b"alive\n")
            case "/readyz":
                ready = self._board.row(0)[Column.READY]
                return (
                    Page(HTTPStatus.OK, b"ready\n") if ready else Page(HTTPStatus.SERVICE_UNAVAILABLE, b"not ready\n")
                )
        return Page(HTTPStatus.NOT_FOUND, b"there are /metrics, /livez and /readyz\n")

    def _numbers(self, accept: str) -> Page:
        offers = {offer.partition(";")[0].strip().lower() for offer in accept.split(",")}
        # Not the peer's own words: choose_encoder trips over a version that is none, and gives it back in its answer.
        encode, media_type = choose_encoder(_OPENMETRICS if _OPENMETRICS.partition(";")[0] in offers else "")
        return Page(HTTPStatus.OK, encode(self._metrics), media_type)
