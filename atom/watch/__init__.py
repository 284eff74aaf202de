"""Looking at runs from outside: what runs, its logs, comparing, reporting. Reads run folders, and
imports no torch."""
