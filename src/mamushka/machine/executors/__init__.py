"""What runs virtual CPUs. Nothing outside of a folder in here knows how."""
