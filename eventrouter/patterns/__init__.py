"""EventBridge content patterns, as event-ruler, the engine behind EventBridge, has them.

```python
from eventrouter import patterns

hot = patterns.compile({"detail": {"celsius": [{"numeric": [">", 90]}]}})
hot.matches({"detail": {"celsius": 91}})  # True
```
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from eventrouter.patterns.grammar import PatternError, parse, read
from eventrouter.patterns.matching import Pattern
from eventrouter.patterns.rules import Rules

__all__ = ["Pattern", "PatternError", "Rules", "compile"]


def compile(pattern: Mapping[str, Any] | str) -> Pattern:
    """Compile a pattern given as JSON text or decoded. Raises PatternError, a ValueError that names the place of the fault."""
    try:
        combinations = parse(read(pattern))
    except RecursionError:
        raise PatternError("$", "is nested too deeply") from None
    return Pattern(json.loads(pattern) if isinstance(pattern, str) else pattern, combinations)
