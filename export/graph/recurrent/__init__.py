"""Parts of a block that keep a state of one size, however long the text: convolutions, delta nets, state spaces."""
