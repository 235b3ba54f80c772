"""A short reliability campaign: bad files, flipped bits, kills and failing system calls, with torch and safetensors
as oracles. `bin/fuzz --help`; `tests/test_fuzz.py` runs a fixed sample.

    seeds       small inputs, made on the spot
    mutations   of text and of values that any format is made of
    torchfiles  of zip archives and of the pickles in them
    confined    a task in a process of its own, and what is wrong with any outcome
    oracles     what torch and safetensors read in a file
    bench       what a check works with: chance, a place, the command line
    checks      bad inputs: one named check for each format
    flips       a bit of what the tool itself wrote
    faults      the real command under strace: kills, and calls that fail
    __main__    the loop and the report
"""
