"""The seven moves as Python sees them: their arguments and answers as dataclasses. No connection in here.

Every change of a queue's state is one of the Lua scripts in ``lua/``, so that it happens whole or not at all. Each
has a file here: its ``…Call`` turns into the script's ARGV and the reply back into a dataclass; a broker sends it.
"""

from headrace.moves.admit import MAX_ADMIT_ENTRIES, Admission, AdmitCall, Admitted, admit_parts
from headrace.moves.call import Argument, Call, source
from headrace.moves.cancel import CancelCall
from headrace.moves.claim import ClaimCall, Claimed, ClaimedRow
from headrace.moves.dispatch import BatchNote, DispatchCall, Dispatched
from headrace.moves.emit import MAX_EMIT_ROWS, EmitCall, EmitRow, Emitted, Verb, fence
from headrace.moves.heartbeat import Beat, HeartbeatCall
from headrace.moves.reap import RECHECK_MS, ReapCall, Reaped
from headrace.moves.recount import TOTALS, RecountCall
from headrace.moves.remember import RememberCall
from headrace.moves.submit import SubmitCall, Submitted
from headrace.moves.window import ReadyRequest, Window, WindowCall

__all__ = [
    "MAX_ADMIT_ENTRIES",
    "MAX_EMIT_ROWS",
    "RECHECK_MS",
    "TOTALS",
    "Admission",
    "AdmitCall",
    "Admitted",
    "Argument",
    "BatchNote",
    "Beat",
    "Call",
    "CancelCall",
    "ClaimCall",
    "Claimed",
    "ClaimedRow",
    "DispatchCall",
    "Dispatched",
    "EmitCall",
    "EmitRow",
    "Emitted",
    "HeartbeatCall",
    "ReadyRequest",
    "ReapCall",
    "Reaped",
    "RecountCall",
    "RememberCall",
    "SubmitCall",
    "Submitted",
    "Verb",
    "Window",
    "WindowCall",
    "admit_parts",
    "fence",
    "source",
]
