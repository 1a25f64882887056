"""Threads that wait for others sleep; to be imported before torch, whose OpenMP looks here once.

Threads that spin instead are a little quicker on an idle machine. On a busy one they keep each
other from their cores: two threads were measured to be twenty times slower than one.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
