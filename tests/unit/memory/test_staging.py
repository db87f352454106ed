import pytest
import torch

from headrace.errors import KernelError
from headrace.memory.staging import Staging

CPU = torch.device("cpu")


def test_numbers_arrive_once_they_are_sent() -> None:
    staging = Staging(256, CPU)
    for turn in range(3):
        staging.begin()
        ids = staging.put([turn, 2**40], torch.int64)
        nothing = staging.put([], torch.int32)
        places = staging.put([5, -1, turn], torch.int32)
        staging.send()
        assert ids.tolist() == [turn, 2**40]
        assert nothing.tolist() == []
        assert places.tolist() == [5, -1, turn]
        assert places.data_ptr() % 16 == ids.data_ptr() % 16


def test_more_than_there_is_room_for_is_refused() -> None:
    staging = Staging(16, CPU)
    staging.begin()
    staging.put([1, 2], torch.int64)
    with pytest.raises(KernelError, match="more than the 16 bytes"):
        staging.put([3], torch.int32)
