"""What a command asks for as a whole: conversions with the comparison and the publishing that follow, comparisons with
their reports. A command describes it and prints the outcome."""
