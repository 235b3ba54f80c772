"""Small nets run in one thread."""

from __future__ import annotations

import makers

one_thread = makers.one_thread
