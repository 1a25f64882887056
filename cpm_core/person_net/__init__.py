"""The shipped person locator: a small CPM that maps centres of people and regresses their size."""

from __future__ import annotations

from cpm_core.person_net.locate import PersonNetLocator, checked_threshold
from cpm_core.person_net.weights import load_person_net

__all__ = ["PersonNetLocator", "checked_threshold", "load_person_net"]
