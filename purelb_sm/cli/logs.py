"""How log lines look: JSON on stderr, one event a line (spec D7), or text for people at a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog


def configure(format_: Literal["json", "text"], level: str) -> None:
    """Sets structlog up for the process; libraries that use stdlib logging are shown from warnings up."""
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer() if format_ == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
