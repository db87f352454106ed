"""The command line: a file a command or group of commands, ``app`` puts them together."""
