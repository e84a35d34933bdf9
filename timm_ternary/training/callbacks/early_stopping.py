"""When to stop for want of progress."""

from __future__ import annotations

from typing import Any

from transformers import EarlyStoppingCallback

__all__ = ["EarlyStopping"]


class EarlyStopping(EarlyStoppingCallback):
    """As transformers' callback; each training counts anew, or on from where it resumes."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the count of the checkpoint that training resumes from."""
        saved = state.stateful_callbacks.get(type(self).__name__, {}) if state.global_step else {}
        count = saved.get("attributes", {}).get("early_stopping_patience_counter", 0)
        self.early_stopping_patience_counter = count
        # A checkpoint of a training without it has no entry, which transformers 5.23 looks for.
        state.stateful_callbacks[type(self).__name__] = self.state()
