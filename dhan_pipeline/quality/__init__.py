"""Measures of what was captured and the thresholds they are judged by: plain numbers in, outcomes in words out."""
