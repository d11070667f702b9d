"""A folder that was copied or moved together with its MLflow database.

MLflow keeps the full addresses of artifacts and has no command that changes them: those of the old
place would be read from there, and written to.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns of MLflow's database that hold addresses of artifacts."""


def take_along(database: Path, before: str, after: str) -> None:
    """Let all addresses below a folder's lead below another's: those of both are file:///..."""
    with closing(sqlite3.connect(database)) as connection, connection:
        for table, column in ADDRESSES:
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                f"WHERE substr({column}, 1, ?) = ?",
                (after, len(before) + 1, len(before) + 1, f"{before}/"),
            )
