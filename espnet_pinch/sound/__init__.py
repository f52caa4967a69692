"""Sound files as people have them: all of a file is read, or an error says what is wrong with it."""
