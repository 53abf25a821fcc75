"""Running stream SQL: sources, operators, sinks, epochs."""
