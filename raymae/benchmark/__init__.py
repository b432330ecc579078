"""raymae against what a user would pick instead: both sides in one run, outputs checked equal first, ratios printed."""
