"""What can go wrong with a peer; the run goes on without it."""

from __future__ import annotations


class PeerError(Exception):
    """A peer cannot be measured; the message says why, for a table."""
