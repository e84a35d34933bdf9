"""Canary: fails when huggingface_hub changes what a broken connection raises."""

from __future__ import annotations

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from timm_ternary.compat.hub import HTTPError

pytestmark = pytest.mark.canary


def test_a_broken_connection_raises_the_base_of_the_hubs_errors() -> None:
    assert issubclass(HfHubHTTPError, HTTPError) and HTTPError is not Exception
    # Nothing listens on the discard port.
    with pytest.raises(HTTPError):
        HfApi(endpoint="http://127.0.0.1:9").model_info("user/name", timeout=5)
