"""The kernels of the TVM target: scheduled PrimFuncs, one generator for each dialect op. They know no graph."""
