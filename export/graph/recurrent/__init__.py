"""What a block has in place of attention or beside it: layers with a state of one size, however long the text."""
