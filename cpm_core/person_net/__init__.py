"""The shipped person locator: a small CPM that maps centres of people and regresses their size."""

from __future__ import annotations

from cpm_core.person_net.locate import PersonNetLocator

__all__ = ["PersonNetLocator"]
