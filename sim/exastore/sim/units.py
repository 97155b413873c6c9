"""Units that several modules need."""

#: Seconds in a year of 365.25 days, the year of every rate here.
YEAR_S = 365.25 * 86_400.0
