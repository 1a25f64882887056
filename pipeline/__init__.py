"""PoseMill's pipeline: the only package that imports Ray."""
