"""TensorRT and TensorRT for RTX: engines that `latentrt build` made, driven without leaving the device."""
