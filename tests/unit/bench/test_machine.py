"""What is measured is what a worker would serve with."""

from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch

from headrace.bench.machine import Limits, Machine
from headrace.config import Settings
from headrace.testing.full_shapes import SHAPES
from headrace.workers.engine import device_engine
from headrace.workers.engine.device_engine import DeviceLimits


def test_a_gpus_engine_is_set_as_a_workers_is_where_nothing_else_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[DeviceLimits] = []

    def make(load: object, device: torch.device, dtype: torch.dtype, limits: DeviceLimits) -> SimpleNamespace:
        made.append(limits)
        return SimpleNamespace(engine=None)

    monkeypatch.setattr(device_engine, "DeviceEngine", make)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    Machine(torch.device("cuda", 0), torch.bfloat16).engine(SHAPES["Q06"], Limits())
    # How large an engine is follows from its device; the rest from settings of the same names.
    names = {field.name for field in fields(DeviceLimits)} - {"max_rows", "row_tokens", "step_tokens", "kv_tokens"}
    told = {name: getattr(made[0], name) for name in names & Settings.model_fields.keys()}
    assert {"prompt_graphs", "cuda_graphs", "stall_ms", "overtaking_rows"} <= told.keys()
    assert told == {name: Settings.model_fields[name].default for name in told}
