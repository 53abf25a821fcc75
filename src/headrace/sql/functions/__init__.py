"""Functions of the stream SQL, one family per file. A module here exports spec values; nothing lists them."""
