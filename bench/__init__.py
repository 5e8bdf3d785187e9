"""Speed and weight against the engines people know, in pairs on one machine: ``python -m bench``."""
