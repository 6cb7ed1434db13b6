// What this crate calls of cuDNN beside dfdx. The emulated convolutions always multiply in single precision.
int cudnnSetConvolutionMathType(void *convolution, int type) { return 0; }
