"""HubMixin: what --push_to_hub publishes is the model as others load it, and nothing else."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ..hub.push import create_repository, push_to_hub
from ..nn.timm_wrapper import unwrap

if TYPE_CHECKING:
    from .image_trainer import ImageTrainer as _Trainer
else:
    _Trainer = object

__all__ = ["HubMixin"]

_logger = logging.getLogger(__name__)
_STRATEGIES = ("end", "every_save")


class HubMixin(_Trainer):
    """Publishes packed models: no latent weights, optimizer states, pickles or checkpoints.

    To be named before ImageTrainer among the bases of a Trainer.

    With `push_to_hub` the repository is made before training, or the run ends in one line. With
    `hub_strategy` ``every_save`` the model is published at each checkpoint too; what fails there is
    logged, and training goes on.
    """

    hub_model_id: str | None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As the Trainer's.

        Raises:
            ValueError: `hub_strategy` would publish checkpoints, or needs whole weights under FSDP.
            OSError: The Hub refuses, fails, or cannot be reached.
        """
        strategy = self.args.hub_strategy.value
        if strategy not in _STRATEGIES:
            raise ValueError(
                f"hub_strategy={strategy!r} would publish latent weights and optimizer states; "
                "type --hub_strategy end, or every_save for the packed model at each checkpoint"
            )
        if strategy != "end" and self.is_fsdp_enabled:
            raise ValueError(
                f"hub_strategy={strategy!r} needs whole weights at each checkpoint, not FSDP; type "
                "--hub_strategy end"
            )
        if self.is_world_process_zero():
            self.hub_model_id, _ = create_repository(
                self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name,
                private=self.args.hub_private_repo if private is None else private,
                token=token or self.args.hub_token,
            )

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        *,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> str | None:
        """Publish the model, with card, metrics and figures of the output_dir.

        Args:
            commit_message: Title of the commit.
            token, revision, private: Instead of `hub_token`, `hub_revision`, `hub_private_repo`.

        Returns:
            The address of the repository; None in all processes but the first.

        Raises:
            ValueError: The model is none of timm, is in shards (FSDP), or cannot be saved.
            OSError: The Hub refuses, fails, or cannot be reached; the same call again repeats it.
        """
        if self.is_fsdp_enabled:
            raise ValueError(
                "the model is in shards (FSDP); train with --push_to_hub true --hub_strategy end, "
                "or type: timm-ternary push OUTPUT_DIR user/name"
            )
        if not self.is_world_process_zero():
            return None
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        with self.averaged():
            return push_to_hub(
                unwrap(model),
                str(self.hub_model_id),
                directory=self.args.output_dir,
                private=self.args.hub_private_repo if private is None else private,
                revision=revision or self.args.hub_revision,
                token=token or self.args.hub_token,
                commit_message=commit_message,
            )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """In place of the Trainer's, which uploads the folder's latent weights."""
        if self.args.hub_strategy.value == "end" or not self.is_world_process_zero():
            return
        try:
            self.push_to_hub(f"Training in progress, {Path(checkpoint_folder).name}")
        except (OSError, ValueError) as error:  # hours of training are worth more than one upload
            _logger.warning("%s; training goes on", error)
