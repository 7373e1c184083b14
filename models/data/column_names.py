"""Names of columns: which of a table's columns is the user, the item and the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

from srsplan.models.errors import InputError

# compared without case, blanks, dashes and underscores: userId, USER_ID and "user id" are one name
ALIASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "user": (
            *("userid", "user", "uid", "useridx", "visitorid", "visitor", "customerid", "customer", "reviewerid"),
            *("accountid", "memberid", "clientid", "sessionid", "session"),
        ),
        "item": (
            *("itemid", "item", "iid", "itemidx", "movieid", "trackid", "songid", "productid", "product", "articleid"),
            *("videoid", "bookid", "gameid", "newsid", "businessid", "locationid", "parentasin", "asin", "sku"),
        ),
        "timestamp": (
            *("timestamp", "time", "ts", "datetime", "date", "eventtime", "eventtimestamp", "createdat"),
            *("unixtime", "unixreviewtime", "tdat"),
        ),
    }
)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns; None = found by name, among the usual ones."""

    user: str | None = None
    """Column of the user ids."""
    item: str | None = None
    """Column of the item ids."""
    timestamp: str | None = None
    """Column of the times: numbers, dates, or ISO 8601 text."""


FOUND_BY_NAME = Columns()


def _bare(name: str) -> str:
    """Return a column name as it is compared: without RecBole's `:token`, case and separators."""
    return "".join(letter for letter in name.split(":")[0].lower() if letter.isalnum())


def find(role: str, names: Sequence[str]) -> str | None:
    by_bare_name = {_bare(name): name for name in reversed(names)}
    return next((by_bare_name[alias] for alias in ALIASES[role] if alias in by_bare_name), None)


def choose(names: Sequence[str], columns: Columns, path: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Map the roles user, item and, where there is one, timestamp to columns; and return the sentence that says so."""
    asked = {"user": columns.user, "item": columns.item, "timestamp": columns.timestamp}
    found = {role: find(role, names) if name is None else _named(name, names, path) for role, name in asked.items()}
    chosen = {role: name for role, name in found.items() if name is not None}
    listed = ", ".join(names[:30])
    for role in ("user", "item"):
        if role not in chosen:
            raise InputError(
                f"{path}: no column looks like the {role} (columns are {listed})",
                f"name it with --{role}-column; the first line must be a header",
            )
    taken = list(chosen.values())
    doubled = [name for name in taken if taken.count(name) + list(names).count(name) > 2]
    if doubled:
        raise InputError(f"{path}: column {doubled[0]!r} would be used twice (columns are {listed})", "rename one")
    notes = [f"{path.name}: " + ", ".join(f"{role} column {name!r}" for role, name in chosen.items())]
    if "timestamp" not in chosen:
        notes.append("no timestamp column: the order of a user's rows in the file is taken as the order of time")
    return chosen, tuple(notes)


def _named(name: str, names: Sequence[str], path: Path) -> str:
    """Return the column a user asked for; `user_id` also finds RecBole's `user_id:token`."""
    for candidate in (name, *(full for full in names if full.split(":")[0] == name)):
        if candidate in names:
            return candidate
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "give one of them"
    raise InputError(f"{path}: no column {name!r} (columns are {', '.join(names[:30])})", hint)
