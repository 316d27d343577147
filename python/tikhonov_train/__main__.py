"""`python -m tikhonov_train` is the command `tikhonov`."""

from .launcher import main

main()
