"""criu, the program that writes processes down and makes them anew: what it is told, and how it is run."""
