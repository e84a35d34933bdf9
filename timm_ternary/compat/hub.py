"""Of huggingface_hub: the error of a broken connection. (1.0 to 2.4)"""

from __future__ import annotations

from typing import Any

from huggingface_hub.errors import HfHubHTTPError

__all__ = ["HTTPError"]

# httpx's, or that of its fork httpx2, by release of huggingface_hub: the base of what a broken
# connection raises, which is no OSError.
HTTPError: Any = HfHubHTTPError.__bases__[0]
