"""The models that are known, one folder each. None knows another, or the checker.

A new model is a folder and one line here.
"""

FAMILIES = (
    "pixart.table:PIXART",
    "dit.table:DIT",
    "pixart.controlnet_table:PIXART_CONTROLNET",
    "sana.table:SANA",
)  # in the order in which they are tried and listed
