"""Certificate authorities, which take as long to read as a hundred requests take to send."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def trusting_nobody() -> Iterator[None]:
    """What makes a TLS context meanwhile does not read the certificate authorities of the machine into it.

    aiohttp makes one when it is imported, for connections that bring none of their own, as all of ours do; and the
    Kubernetes package makes one for a server without TLS, too. A connection that used it would find every certificate
    unknown. Those with authorities of their own read them as ever.
    """
    load = ssl.SSLContext.load_default_certs
    ssl.SSLContext.load_default_certs = lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        ssl.SSLContext.load_default_certs = load  # type: ignore[method-assign]
