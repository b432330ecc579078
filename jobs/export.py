"""Export a classifier or a pre-trained encoder to timm's VisionTransformer (safetensors) and to ONNX, each checked.

python jobs/export.py --export.model models:/raymae-scene-classifier@candidate --export.output exported/
ray job submit --working-dir . -- python jobs/export.py …
"""

from typing import Any

from raymae.cli.main import main
from raymae.config import Config


def run(config: Config) -> dict[str, Any]:
    """Run the job; its module imports torch, for which --help need not wait."""
    from raymae.serving.export import export

    return export(config)


if __name__ == "__main__":
    main(run, __doc__)
