"""Ways in which a Hub, or a mirror or proxy before it, can lie. `MODES` has all of them by name.

What lives here: each lie, a function that sets up the servers and the cache of a `Scene`. What must not: what has to
hold in spite of it (`test_lying_hub.py`).
"""

from tests.fuzz.lies import answers, cache, wire
from tests.fuzz.lies.scene import FILES, MODES, TOKEN, Scene

__all__ = ["FILES", "MODES", "TOKEN", "Scene", "answers", "cache", "wire"]
