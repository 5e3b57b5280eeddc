"""Files whose layout both sides of the wall between compiler and runtime tests rely on, each defined once."""
