"""The protocol of routes, as `lnz.routes` shows it."""

from lnz._core.route import Choice as Choice
