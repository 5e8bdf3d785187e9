"""Many containers by many callers at once, whose commands are killed at random: nothing is left, nothing waits."""
