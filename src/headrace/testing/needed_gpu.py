"""Ends a script that measures a GPU where there is none."""

import sys

import torch


def need_gpu() -> None:
    """Exit with status 1 and a line that says why, unless torch finds a GPU."""
    if not torch.cuda.is_available():
        sys.exit("no GPU: torch finds no CUDA device to measure; see `headrace doctor`")
