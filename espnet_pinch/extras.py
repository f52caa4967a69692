"""The optional packages: which extra of ``pyproject.toml`` installs a missing module."""

# {extra: modules that the package or its programs import, and that the extra adds to the basic installation}
MODULES = {
    "asr": (
        "espnet2",
        "torchaudio",
        "transformers",
        "huggingface_hub",
        "safetensors",
        "soundfile",
        "kaldiio",
        "jiwer",
        "yaml",
        "scipy",
        "matplotlib",
        "tensorboard",
        "tqdm",
        "sentencepiece",
        "tokenizers",
        "typeguard",
    ),
    "trainer": ("accelerate",),
    "export": ("onnx", "onnxscript", "onnx_ir", "onnxruntime"),
    "openvino": ("openvino", "onnx", "onnxscript", "onnx_ir"),
    "sherpa": ("sherpa_onnx", "onnx", "onnxruntime", "onnxscript", "onnx_ir"),
    "hf": ("datasets",),
    "onnx-asr": ("onnx_asr", "onnx", "onnxruntime", "onnxscript", "onnx_ir"),
    "demo": ("espeakng_loader",),
}


def how_to_install(module: str | None) -> str | None:
    """One line about a missing module; None if no extra installs it.

    >>> how_to_install("onnxruntime")
    "the package onnxruntime is not installed: run pip install -e '.[export]' in the repository"
    >>> how_to_install("transformers.models.of_another_release")
    """
    extra = next((extra for extra, modules in MODULES.items() if module in modules), None)
    if extra is None:
        return None
    return f"the package {module} is not installed: run pip install -e '.[{extra}]' in the repository"
