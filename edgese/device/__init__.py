"""Commands of a device bundle, which run on a board; `edgese bundle` copies them with all that they import.

    ./run self-test | build | bench | enhance

In the bundle this package is `edgese_device.device`: `edgese.board.archive` renames what it copies, so that an edgese
that is installed on the board is not taken for it. It imports the standard library, NumPy, the three general folders
and what of edgese needs no more than that; a runtime's own library is loaded when that runtime is opened.
"""
