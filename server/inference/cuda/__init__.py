"""What only a GPU needs: options, proof of placement, fixed buffers and CUDA graphs, TensorRT."""
