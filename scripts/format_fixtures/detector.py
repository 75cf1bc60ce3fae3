"""Modules with everything that decides what a module's state dict is."""

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 3, 1, bias=False)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(x))


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(Block(2), nn.ReLU(), Block(3))
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("anchors", torch.arange(6.0).view(2, 3).t())
        # None of what follows is in the state dict.
        self.register_buffer("grid", torch.ones(2), persistent=False)
        self.register_buffer("no_buffer", None)
        self.register_parameter("no_parameter", None)
        self.register_module("no_module", None)
        self.stride = torch.tensor([8.0, 16.0])
        self.names = {0: "cat", 1: "dog"}

    def forward(self, x):
        return self.backbone(x)
