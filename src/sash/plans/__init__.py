"""Make it fit: levers, the search for a plan, the planned run."""

from sash.plans._lever import Exactness, Lever

__all__ = ["Exactness", "Lever"]
