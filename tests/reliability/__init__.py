"""End-to-end: the promises of the README, held against hostile files, valid traps and accidents."""
