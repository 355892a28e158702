"""What verbs that ask or change the book have in common: where it is, what was typed, and how errors are told.

Exit codes: 0 answered; 1 the history is broken, or the schema is not ours; 2 what was typed makes no sense; 3 the
database or the cluster cannot be asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated

import typer

from purelb_sm.cli.printing import Output
from purelb_sm.domain.views import ServiceKey
from purelb_sm.errors import HistoryBroken, InvalidInput, KubeError, SchemaMismatch, StoreError

Database = Annotated[str, typer.Option(envvar="PURELB_DATABASE", help="SQLAlchemy URL of the book")]
InstallNamespace = Annotated[
    str, typer.Option("--install-namespace", envvar="PURELB_INSTALL_NAMESPACE", help="where PureLB is installed")
]
Form = Annotated[Output, typer.Option("--output", "-o", help="table, json (an object a line) or csv")]


@contextmanager
def explained() -> Iterator[None]:
    """Errors of ours as one line on standard error, and an exit code that scripts can tell apart."""
    try:
        yield
    except (HistoryBroken, SchemaMismatch) as error:
        code, text = 1, str(error)
    except InvalidInput as error:
        code, text = 2, str(error)
    except (StoreError, KubeError) as error:
        code, text = 3, str(error)
    else:
        return
    typer.echo(f"purelb: {text}", err=True)
    raise typer.Exit(code)


def utc_now() -> datetime:
    return datetime.now(UTC)


def service_key(text: str) -> ServiceKey:
    """namespace/name, as typed. Raises InvalidInput."""
    namespace, slash, name = text.partition("/")
    if not (slash and namespace and name) or "/" in name:
        raise InvalidInput(f"{text!r} is not namespace/name")
    return ServiceKey(namespace, name)
