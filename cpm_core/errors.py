"""Errors that a user of the core can meet. Each message names the input and the fix."""

from __future__ import annotations


class CpmError(Exception):
    """Base of every error that the core raises on purpose."""


class SkeletonError(CpmError):
    """A skeleton file is unreadable or inconsistent."""


class ConfigError(CpmError):
    """A network configuration cannot be built."""


class WeightsError(CpmError):
    """A weights file is missing, damaged, or does not fit."""


class LocatorError(CpmError):
    """A person locator cannot be used."""


class PackError(CpmError):
    """A pack of training samples cannot be written, is damaged, or does not fit."""
