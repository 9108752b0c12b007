"""Many runs from one file: which there are, where they run, what became of each."""
