"""Who may use which bytes of the key-value memory, and the bytes themselves."""
