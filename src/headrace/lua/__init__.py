"""The seven moves of the contract, one Lua script each."""
