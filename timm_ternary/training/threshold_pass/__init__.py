"""The pass that updates thresholds and scales (He & Fan 2019, Algorithm 1, step 3)."""

__all__: list[str] = []
