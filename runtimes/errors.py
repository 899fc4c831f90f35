"""The errors of this folder.

RuntimeUnavailable
├── ArtefactError  a graph that is missing, broken, or not the one that was asked for
└── FeedError      arrays, states or axes that do not fit the graph
"""

from __future__ import annotations


class RuntimeUnavailable(Exception):  # noqa: N818 - it says what the user meets: there is no runtime to run on
    """Base of this folder's errors: a runtime that is missing, closed, or failed while it ran."""


class ArtefactError(RuntimeUnavailable):
    """A graph that is missing, broken, or carries other metadata than was asked for."""


class FeedError(RuntimeUnavailable):
    """Arrays, states or axes that do not fit the graph: wrong names, dtypes or shapes."""
