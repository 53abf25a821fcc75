"""One kind of channel a file: a `ChannelKind` at module level. No list to edit."""
