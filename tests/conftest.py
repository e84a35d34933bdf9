"""How the tests run: on one thread each."""

from __future__ import annotations

import os

# Before torch is imported, and for the processes that tests start. The models are so small that
# more threads cost time; and sums in another order would differ in the last bit.
os.environ["OMP_NUM_THREADS"] = "1"
