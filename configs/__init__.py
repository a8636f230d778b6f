"""One file for each thing that is trained; `get_config(variant)` returns its settings.

`common` has the defaults and explains every key.
"""
