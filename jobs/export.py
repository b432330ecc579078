"""Export a classifier or a pre-trained encoder to timm's VisionTransformer (safetensors) and to ONNX, and check both.

python jobs/export.py --export.model models:/raymae-scene-classifier@candidate --export.output exported/
python jobs/export.py --export.model runs/artifacts/pretrain/1a2b3c4d5e6f7a8b --export.output exported/
"""

from typing import Any

from raymae.cli.main import main
from raymae.config import Config


def run(config: Config) -> dict[str, Any]:
    """Run the job; its module imports torch, so it is imported after --help has been answered."""
    from raymae.serving.export import export

    return export(config)


if __name__ == "__main__":
    main(run, __doc__)
