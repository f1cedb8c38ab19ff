"""libllama and ONNX Runtime behind one step interface, in this process or in a child."""
