"""Who does the coder's heavy loops: numpy always can, compiled twins are faster. None of them decides a bit."""
