"""Judges of an evaluation's answers, and what they find: win rates against the baseline, files and a page."""
