"""System call profiles: the default one as data, and those that users bring."""
