"""How often a process that computes in a loop looks for garbage that reference counts do not find."""

import gc

# Container objects made and still there before a look; Python's own default is 700. A step of prompts alone makes
# thousands that stay, of the prefix cache's index, and each look would go through all of the younger ones again.
_LOOK_AFTER = 10_000


def look_seldom() -> None:
    """Collect garbage once, leave all that is there out of later looks, and look less often.

    To be called when a process has what it serves with: its hundreds of thousands of objects hold no garbage, and a
    look at them would fall into the middle of a step.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_LOOK_AFTER, *gc.get_threshold()[1:])


def look_at_all() -> None:
    """Collect garbage among all objects, those that ``look_seldom`` left out as well."""
    gc.unfreeze()
    gc.collect()
