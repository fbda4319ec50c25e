"""Former spellings of options, so that old commands still run."""
