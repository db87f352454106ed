"""The fleet: scheduler, courier, engine, and the processes that keep them alive."""
