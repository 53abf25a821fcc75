"""Which of PostgreSQL's refusals a person must mend, and which pass by themselves."""

from __future__ import annotations

import psycopg
import pytest

from headrace.core.errors import Unavailable, UserError
from headrace.warehouse.postgres import _not_connected

SOCKET = 'connection to server on socket "/var/lib/headrace/.s.PGSQL.5432" failed: FATAL:  '


@pytest.mark.parametrize(
    "text",
    [
        "the database system is starting up",
        "the database system is shutting down",
        "the database system is in recovery mode",
        "the database system is not yet accepting connections\nDETAIL:  Consistent recovery state has not been yet reached.",
        "sorry, too many clients already",
    ],
)
def test_a_server_that_recovers_or_is_full_is_tried_again(text: str) -> None:
    assert isinstance(_not_connected(psycopg.OperationalError(SOCKET + text)), Unavailable)


@pytest.mark.parametrize(
    "text",
    ['password authentication failed for user "h"', 'role "h" does not exist', 'database "h" does not exist'],
)
def test_a_wrong_password_role_or_database_is_for_a_person(text: str) -> None:
    assert isinstance(_not_connected(psycopg.OperationalError(SOCKET + text)), UserError)
