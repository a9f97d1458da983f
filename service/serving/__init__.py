"""What is served from: a release with the ledger on top, swapped, folded, followed."""
