"""What runs a network's trunk: PyTorch, OpenVINO, a compiled graph or ONNX Runtime.

An engine is a `Trunk`: `trunk(images) -> raw`, uint8 canvases (B, H, W, 3) in, the tensors of the
module that it was made from out, with the normalisation of the pixels as its first operation. The
read-out that follows is the same PyTorch code for all of them.

Every engine but PyTorch in float32 passes the gate of `parity.py` before a model key names it.

A new engine, TensorRT for instance, is a module here with a class like `OpenVinoTrunk` (made from
a `PixelTrunk` and shapes that it has not seen before), a name in `EngineName`, a line in
`build.make_trunk`, and nothing else: the key, the gate, the caches and the read-outs follow.
"""
