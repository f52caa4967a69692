"""UMP, uniform magnitude pruning: prunes the same fraction of every layer, the smallest weights first.

A baseline of arXiv 2505.22608 (section 4).
"""

from collections.abc import Mapping

from espnet_pinch.core.one_shot import OneShot
from espnet_pinch.core.registry import register


@register("ump", title="UMP", label="UMP", colour="tab:gray", marker="s")
class UniformPruning(OneShot):
    """Prunes every layer once, to the target sparsity, then fine-tunes.

    Args:
        settings: keyword arguments of ``MethodSettings``.
    """

    def wanted(self, names: list[str]) -> Mapping[str, float]:
        return dict.fromkeys(names, self.settings.target)
