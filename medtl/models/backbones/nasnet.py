"""NASNet-A large backbone (Zoph 2017). Each of its cells reads the outputs of the two cells before it."""

from typing import Any

import torch
from torch import Tensor, nn

from medtl.models.timm_network import TimmNetwork, timm_entry


class Stem(nn.Module):
    """Images -> the first cell's output and, behind it, the one before, side by side in the channels."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.conv0 = net.conv0
        self.stem_0, self.stem_1, self.cell_0 = net.cell_stem_0, net.cell_stem_1, net.cell_0

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv0(x)
        before = self.stem_0(x)
        previous = self.stem_1(x, before)
        return torch.cat([self.cell_0(previous, before), previous], dim=1)


class Cells(nn.Module):
    """Run cells on a pair of outputs (N, newer + older, h, w) that share one tensor; give the last pair.

    A cell that reduces the map may only be the first of a group: its output does not fit beside its input,
    and the cell after it reads the same older output as it did.
    """

    def __init__(self, cells: list[Any], first_reduces: bool = False) -> None:
        super().__init__()
        self.cells = nn.ModuleList(cells)
        self.first_reduces = first_reduces
        self.newer = cells[0].conv_1x1.conv.in_channels

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.last_pair(x), dim=1)

    def last_pair(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs of the last cell and of the one before."""
        newer, older = x[:, : self.newer], x[:, self.newer :]
        for index, cell in enumerate(self.cells):
            reduces = self.first_reduces and index == 0
            newer, older = cell(newer, older), older if reduces else newer
        return newer, older


class LastCells(Cells):
    """Run the last cells and give the activated output of the last alone: the feature map."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last_pair(x)[0].relu()


def cell_groups(net: Any) -> dict[str, nn.Module]:
    """Return the stem and three spans of cells, each in two groups."""
    cells = [getattr(net, f"cell_{index}") for index in range(18)]
    return {
        "stem": Stem(net),
        "cells1_3": Cells(cells[1:4]),
        "cells4_5": Cells(cells[4:6]),
        "cells6_8": Cells([net.reduction_cell_0, *cells[6:9]], first_reduces=True),
        "cells9_11": Cells(cells[9:12]),
        "cells12_14": Cells([net.reduction_cell_1, *cells[12:15]], first_reduces=True),
        "cells15_17": LastCells(cells[15:18]),
    }


NASNET_LARGE = timm_entry("nasnet_large", "NASNet", TimmNetwork("nasnetalarge.tf_in1k", cell_groups))
ENTRIES = (NASNET_LARGE,)
