import os

# TensorFlow, which reads this when it is loaded, leaves oneDNN off on AMD processors without AVX-512
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
