"""The shipped person locator: a small CPM that maps centres of people and regresses their size.

Names are loaded on first use, so that a process which is handed the network compiled does not
import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpm_core.person_net.info import checked_threshold as checked_threshold
    from cpm_core.person_net.locate import PersonNetLocator as PersonNetLocator
    from cpm_core.person_net.weights import load_person_net as load_person_net

_HOME = {
    "PersonNetLocator": "locate",
    "checked_threshold": "info",
    "load_person_net": "weights",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cpm_core.person_net' has no attribute {name!r}")
    return getattr(import_module(f"cpm_core.person_net.{_HOME[name]}"), name)
