"""Jobs on RQ: what they do, and the worker that does them. ``headrace.producer.jobs`` holds their names."""
