"""The requests behind the commands: conversions with the comparison and publishing that follow, comparisons with
their reports. A command describes it and prints the outcome."""
