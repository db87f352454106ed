"""Which layers see only the last tokens: the fields with which Qwen2 and Qwen3 say so."""

from headrace.errors import ModelError
from headrace.workers.engine.models.fields import Fields

_FULL, _SLIDING = "full_attention", "sliding_attention"


def read_windows(fields: Fields) -> tuple[int | None, ...]:
    """Read ``use_sliding_window``, ``sliding_window``, ``max_window_layers`` and ``layer_types``.

    ``layer_types`` has the last word about each layer; without it, the layers from ``max_window_layers`` on slide.

    Returns:
        A layer each: the tokens that a token sees at most, itself among them; None for all.

    Raises:
        ModelError: a type of layer is not known, or slides without a window, or their number does not fit.
    """
    num_layers = fields.positive("num_hidden_layers", int)
    # Null is no window; only a field that is not there at all takes the family's default.
    window = fields.find("sliding_window", int) if fields.says("sliding_window") else 4096
    first = fields.get("max_window_layers", int, 28)
    types = fields.find("layer_types", list)
    if not fields.get("use_sliding_window", bool, False):
        window = None
    if window is not None and window < 1:
        raise fields.refusal("sliding_window", window)
    if types is None:
        types = [_FULL if window is None or index < first else _SLIDING for index in range(num_layers)]
    if len(types) != num_layers:
        raise ModelError(f"config.json: {len(types)} layer_types for {num_layers} layers")
    if unknown := sorted(set(map(str, types)) - {_FULL, _SLIDING}):
        raise fields.refusal("layer_types", unknown[0])
    if _SLIDING in types and window is None:
        raise ModelError(f"config.json: layer_types has {_SLIDING!r}, but there is no sliding_window")
    return tuple(window if kind == _SLIDING else None for kind in types)
