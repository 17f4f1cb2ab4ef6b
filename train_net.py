#!/usr/bin/env python
"""Train or evaluate TDOS with Detectron2's usual flags and KEY VALUE pairs.

Examples:
    python train_net.py --config-file configs/demo.yaml
    python train_net.py --config-file configs/tdos_vitb.yaml --num-gpus 4 --resume
    python train_net.py --config-file configs/tdos_vitb.yaml --eval-only MODEL.WEIGHTS model.pth
"""

from __future__ import annotations

from tdos_commands.train import main

if __name__ == "__main__":
    main()
