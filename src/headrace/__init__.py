"""Headrace: a fleet of inference workers behind Redis.

This package holds what both ends of the queue agree on. Producers live in ``headrace.producer``, the fleet in
``headrace.workers``, the numerical code in ``headrace.kernels`` and ``headrace.memory``.
"""

__version__ = "0.1.0"
