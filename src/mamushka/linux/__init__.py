"""The kernel's own words, no policy: calls, structs and constants as declarations, checked against its headers."""
