"""Read sound files of any kind: all of a file is read, or an error says what is wrong with it."""
