"""PoseMill's pipeline: the only package that imports Ray."""

__version__ = "0.1.0"
