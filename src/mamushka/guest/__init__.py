"""What runs inside a machine as its first process: C, built by build.py; nothing here is imported by the rest."""
