"""Networks made out of torch's own layers, beside which `ConvNet` is tested."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metanb.maml.network import ConvNet


def primitive_norm(x: Tensor) -> Tensor:
    """Batch norm as mean, variance and rsqrt, without gamma and beta: right to any order."""
    mean = x.mean((0, 2, 3), keepdim=True)
    return (x - mean) * ((x - mean).square().mean((0, 2, 3), keepdim=True) + 1e-5).rsqrt()


class Reference(nn.Module):
    """One task's network out of torch's layers.

    Its parameters are `net`'s, layer by layer in the same order.
    """

    def __init__(self, net: ConvNet) -> None:
        super().__init__()
        self.strided = net.strided
        sizes = [net.image_shape[0]] + [net.filters] * 4
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=2 if net.strided else 1, padding=1, bias=False)
            for i, o in itertools.pairwise(sizes)
        )
        self.gammas = nn.ParameterList(block.gamma.detach().clone() for block in net.blocks)
        self.betas = nn.ParameterList(block.beta.detach().clone() for block in net.blocks)
        self.head = nn.Linear(net.head.in_features, net.ways)
        self.to(net.head.weight.dtype).load(list(net.parameters()))

    def load(self, params: list[Tensor]) -> None:
        """Take the values of `ConvNet.parameters()`."""
        with torch.no_grad():
            for i, conv in enumerate(self.convs):
                weight, gamma, beta = params[3 * i : 3 * i + 3]
                conv.weight.copy_(weight.permute(0, 3, 1, 2))
                self.gammas[i].copy_(gamma)
                self.betas[i].copy_(beta)
            self.head.weight.copy_(self.reorder(params[12], to_ours=False))
            self.head.bias.copy_(params[13])

    def reorder(self, weight: Tensor, to_ours: bool) -> Tensor:
        """The head's columns: features are flattened as [H, W, C] by ConvNet, as [C, H, W] here."""
        filters = self.convs[0].out_channels
        shape = (len(weight), filters, -1) if to_ours else (len(weight), -1, filters)
        return weight.view(shape).transpose(1, 2).reshape(len(weight), -1)

    def in_order(self, tensors: dict[str, Tensor]) -> Tensor:
        """Tensors by parameter name as one vector in the layout of `flatten(net)`."""
        parts = []
        for i in range(4):
            parts.append(tensors[f"convs.{i}.weight"].permute(0, 2, 3, 1))
            parts += [tensors[f"gammas.{i}"], tensors[f"betas.{i}"]]
        parts += [self.reorder(tensors["head.weight"], to_ours=True), tensors["head.bias"]]
        return torch.cat([part.flatten() for part in parts])

    def forward(self, x: Tensor, norm=primitive_norm) -> Tensor:
        """Logits [B, ways]."""
        for conv, gamma, beta in zip(self.convs, self.gammas, self.betas, strict=True):
            x = F.relu(norm(conv(x)) * gamma[:, None, None] + beta[:, None, None])
            x = x if self.strided else F.max_pool2d(x, 2)
        return self.head(x.mean((2, 3)) if self.strided else x.flatten(1))


def make(shape, ways=5, filters=4, **options) -> ConvNet:
    torch.manual_seed(0)
    net = ConvNet(shape, ways, filters, **options).double()
    with torch.no_grad():  # gamma and beta that are not all 1 and 0
        for block in net.blocks:
            block.gamma += 0.5 * torch.randn_like(block.gamma)
            block.beta += 0.5 * torch.randn_like(block.beta)
    return net
