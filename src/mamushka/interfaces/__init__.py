"""The outside worlds. They translate between their dialect and the engine's ten words, and decide nothing."""
