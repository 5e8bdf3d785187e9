"""The wall of a computer: memory, a bus with devices, virtual CPUs, and what boots them."""
