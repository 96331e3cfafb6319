"""Every operation at production shape beside its peers, in one table; without a GPU, what the compiler makes of each."""
